# tests/gpu/checks.cmake - the device checks: built always, run on a device where there is one (label gpu), and
# everywhere on the kernels' own code as a host compiler takes it (tests/simt, label kern).
file(GLOB gpu_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/check_*.c)
add_executable(gpu.check_ops ${gpu_sources})
target_include_directories(gpu.check_ops PRIVATE ${CMAKE_SOURCE_DIR})
target_link_libraries(gpu.check_ops PRIVATE kernels)

if(TARGET gantry_cuda)
  add_test(NAME gpu.check_ops COMMAND gpu.check_ops ${CMAKE_BINARY_DIR}/gantry_cuda.so 1)
  set_tests_properties(gpu.check_ops PROPERTIES LABELS gpu TIMEOUT 300 SKIP_RETURN_CODE 77 RESOURCE_LOCK device)
endif()

# Fibers with stacks of their own: x86-64, and no sanitizer in the kernels' half.
find_program(GANTRY_CXX NAMES c++ g++ clang++)
if(GANTRY_CXX AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT GANTRY_SANITIZE AND NOT GANTRY_FUZZ)
  set(simt_dir ${CMAKE_SOURCE_DIR}/tests/simt)
  file(GLOB simt_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu ${simt_dir}/*.cpp)
  file(GLOB simt_headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cuh ${CMAKE_SOURCE_DIR}/kernels/cuda/*.h
       ${CMAKE_SOURCE_DIR}/kernels/*.h ${simt_dir}/*.h)
  set(simt_objects)
  foreach(source ${simt_sources})
    get_filename_component(stem ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/simt/${stem}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/simt
      COMMAND ${GANTRY_CXX} -x c++ -std=c++17 -O2 -g -ffp-contract=off -fno-strict-aliasing -fPIC -fvisibility=hidden
              -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-function -DGANTRY_CUDA_HOST -I${simt_dir}
              -I${CMAKE_SOURCE_DIR} -c -o ${object} ${source}
      DEPENDS ${source} ${simt_headers} VERBATIM COMMENT "host build of ${stem}")
    list(APPEND simt_objects ${object})
  endforeach()
  add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/simt/gantry_cuda.so
    COMMAND ${GANTRY_CXX} -shared -o ${CMAKE_BINARY_DIR}/simt/gantry_cuda.so ${simt_objects}
    DEPENDS ${simt_objects} VERBATIM COMMENT "simt/gantry_cuda.so")
  add_custom_target(simt_plugin ALL DEPENDS ${CMAKE_BINARY_DIR}/simt/gantry_cuda.so)
  # wgmma with mma.sync's bits must be found and taken, with others it must be left out.
  add_test(NAME simt.check_ops COMMAND gpu.check_ops ${CMAKE_BINARY_DIR}/simt/gantry_cuda.so 1 quick)
  set_tests_properties(simt.check_ops PROPERTIES LABELS kern TIMEOUT 400 ENVIRONMENT
    "GANTRY_CHECK_PRODUCTS=wgmma")
  add_test(NAME simt.check_other_bits COMMAND gpu.check_ops ${CMAKE_BINARY_DIR}/simt/gantry_cuda.so 1 quick gemm)
  set_tests_properties(simt.check_other_bits PROPERTIES LABELS kern TIMEOUT 400 ENVIRONMENT
    "SIMT_WGMMA_ROUNDS_TWICE=1;GANTRY_CHECK_PRODUCTS=mma.sync (wgmma gives other bits)")
endif()
