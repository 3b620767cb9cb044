/* worker/main.h - `gantry worker`: one rank of a replica, as a process. */
#ifndef WORKER_MAIN_H
#define WORKER_MAIN_H

/* argv[0] is "worker". Returns the exit code. */
int worker_main(int argc, char **argv);

/* `mpirun -n N gantry serve ...`, the whole service as one MPI job. Called by every rank with
 * serve's own arguments: the first rank of the job starts the coordinator as a process of its own
 * (before MPI, with MPI's environment scrubbed from it), then all ranks play the replica. */
int worker_one_job(int argc, char **argv);
/* `gantry measure`: what this host, or all hosts of the MPI job, do in a second (worker/measure.h). */
int measure_main(int argc, char **argv);
/* Is this process a rank of an MPI job? (Looks at the environment only.) */
int worker_in_mpi_job(void);

#endif
