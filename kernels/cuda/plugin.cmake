# kernels/cuda/plugin.cmake - gantry_cuda.so by nvcc, called directly: CMake's own CUDA language would make the
# whole build ask for a working CUDA tool chain, and compiler launchers and sanitizers would reach it.
if(NOT GANTRY_CUDA STREQUAL "OFF")
  find_program(GANTRY_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
endif()
if(GANTRY_CUDA STREQUAL "ON" AND NOT GANTRY_NVCC)
  message(FATAL_ERROR "GANTRY_CUDA is ON and nvcc was not found; set CUDA_HOME or GANTRY_NVCC")
endif()
if(NOT GANTRY_CUDA STREQUAL "OFF" AND GANTRY_NVCC)
  # -fmad=false -ftz=true and exact divide and square root are part of the numeric contract (docs/numerics.md).
  set(cuda_flags -std=c++17 -O3 -fmad=false -ftz=true -prec-div=true -prec-sqrt=true -lineinfo -Xcompiler -fPIC
      -Xcompiler -fvisibility=hidden -Xcompiler -Wall,-Wextra)
  if(GANTRY_WERROR)
    list(APPEND cuda_flags -Werror all-warnings -Xcompiler -Werror)
  endif()
  set(cuda_archs)
  foreach(arch ${GANTRY_CUDA_ARCHS})
    list(APPEND cuda_archs -gencode=arch=compute_${arch},code=sm_${arch})
    set(cuda_last ${arch})
  endforeach()
  if(NOT cuda_last MATCHES "a$") # PTX of an "a" target runs on that generation alone
    list(APPEND cuda_archs -gencode=arch=compute_${cuda_last},code=compute_${cuda_last})
  endif()
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
  file(GLOB cuda_headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cuh ${CMAKE_SOURCE_DIR}/kernels/cuda/*.h
       ${CMAKE_SOURCE_DIR}/kernels/*.h ${CMAKE_SOURCE_DIR}/base/err.h ${CMAKE_SOURCE_DIR}/base/compiler.h)
  set(cuda_objects)
  foreach(source ${cuda_sources})
    get_filename_component(stem ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/cuda/${stem}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cuda
      COMMAND ${GANTRY_NVCC} ${cuda_flags} ${cuda_archs} -I${CMAKE_BINARY_DIR}/inc/kernels
              -I${CMAKE_BINARY_DIR}/inc/base -c -o ${object} ${source}
      DEPENDS ${source} ${cuda_headers} VERBATIM COMMENT "nvcc kernels/cuda/${stem}.cu")
    list(APPEND cuda_objects ${object})
  endforeach()
  add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/gantry_cuda.so
    COMMAND ${GANTRY_NVCC} -shared -cudart static -o ${CMAKE_BINARY_DIR}/gantry_cuda.so ${cuda_objects}
    DEPENDS ${cuda_objects} VERBATIM COMMENT "gantry_cuda.so")
  add_custom_target(gantry_cuda ALL DEPENDS ${CMAKE_BINARY_DIR}/gantry_cuda.so)
  install(FILES ${CMAKE_BINARY_DIR}/gantry_cuda.so DESTINATION lib/gantry)
  message(STATUS "CUDA kernels: ${GANTRY_NVCC}, ${GANTRY_CUDA_ARCHS}")
else()
  message(STATUS "CUDA kernels: not built (GANTRY_CUDA is ${GANTRY_CUDA}, nvcc: ${GANTRY_NVCC})")
endif()
