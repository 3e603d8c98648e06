// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the tests of stacks look at: functions whose share of the time is known. Each mode says
 * "ready" on stdout when it begins.
 *
 *   burn [ROUNDS]     three quarters of the time in burn_red(), one in burn_blue()
 *   map [ROUNDS]      the same, and both functions in /tmp/perf-PID.map
 *   copy FILE         the same in a mapping of FILE, a copy of this program
 *   nap MS COUNT      COUNT sleeps of MS milliseconds in take_nap(); then says in a line "naps:"
 *                     how often it was preempted and slept, its CPU time (us), and the time that a
 *                     hypervisor took from the machine (ms)
 *   block             sleeps in take_nap() until it is killed
 *   read FILE COUNT   COUNT direct reads of 4096 bytes in read_block()
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define UNIT 100003
#define APART __attribute__((noinline, noclone))

/* Where a loop lies decides on some processors how fast it is. */
#define ALIGNED __attribute__((aligned(64)))

extern char __executable_start[];
static volatile unsigned long sink;

APART ALIGNED void burn_red(unsigned long n)
{
	while (n--)
		asm volatile("" : "+r"(n));
}

APART ALIGNED void burn_blue(unsigned long n)
{
	while (n--)
		asm volatile("" : "+r"(n));
}

APART void burn_caller(void (*red)(unsigned long), void (*blue)(unsigned long), long rounds)
{
	/* Rounds differ in length, so that no sampling falls into step with them. */
	unsigned long number = 1;

	for (long i = 0; rounds < 0 || i < rounds; i++) {
		unsigned long unit = UNIT / 2 + (number >> 33) % UNIT;

		number = number * 6364136223846793005UL + 1442695040888963407UL;
		red(3 * unit);
		blue(unit);
		sink++;
	}
}

/*
 * The C library keeps no frame pointer, so whoever calls it is missing from the stack, and the
 * caller of that is there.
 */
APART int sleep_ms(long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
	int err = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);

	sink += err;
	return err;
}

APART int take_nap(long ms)
{
	int err = sleep_ms(ms);

	sink++;
	return err;
}

APART long read_at(int fd, void *buffer, long number)
{
	long size = pread(fd, buffer, 4096, number * 4096);

	sink += size;
	return size;
}

APART long read_block(int fd, void *buffer, long number)
{
	long size = read_at(fd, buffer, number);

	sink++;
	return size;
}

/* Time that a hypervisor took from all CPUs, in ms: the eighth number of /proc/stat, in ticks. */
static long stolen_ms(void)
{
	long ticks = 0;
	FILE *stat = fopen("/proc/stat", "r");

	if (!stat || fscanf(stat, "cpu %*d %*d %*d %*d %*d %*d %*d %ld", &ticks) != 1)
		exit(1);
	fclose(stat);
	return ticks * 1000 / sysconf(_SC_CLK_TCK);
}

static long cpu_us(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

/* COUNT sleeps; says how often it was preempted, how often it slept, and what was not sleep. */
static void take_naps(long ms, long count)
{
	struct rusage before, after;
	long stolen = stolen_ms(), cpu = cpu_us();

	getrusage(RUSAGE_SELF, &before);
	while (count--)
		take_nap(ms);
	getrusage(RUSAGE_SELF, &after);
	printf("naps: %ld %ld %ld %ld\n", after.ru_nivcsw - before.ru_nivcsw,
	       after.ru_nvcsw - before.ru_nvcsw, cpu_us() - cpu, stolen_ms() - stolen);
}

static void ready(void)
{
	puts("ready");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "burn";
	long number = argc > 2 ? atol(argv[2]) : -1;

	if (!strcmp(mode, "map")) {
		char path[64];

		snprintf(path, sizeof(path), "/tmp/perf-%d.map", getpid());
		FILE *map = fopen(path, "w");

		if (!map)
			return 1;
		long size = (char *)burn_blue - (char *)burn_red;

		fprintf(map, "%lx %lx jit_red\n%lx %lx jit_blue\n", (long)burn_red, size,
			(long)burn_blue, size);
		fclose(map);
	}
	if (!strcmp(mode, "copy")) {
		int fd = open(argv[2], O_RDONLY);
		struct stat stat;

		if (fd < 0 || fstat(fd, &stat))
			return 1;
		char *copy = mmap(NULL, stat.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);

		if (copy == MAP_FAILED)
			return 1;
		ready();
		burn_caller((void *)(copy + ((char *)burn_red - __executable_start)),
			    (void *)(copy + ((char *)burn_blue - __executable_start)), -1);
	}
	if (!strcmp(mode, "nap")) {
		ready();
		take_naps(number, atol(argv[3]));
		return 0;
	}
	if (!strcmp(mode, "block")) {
		ready();
		for (;;)
			take_nap(1000000);
	}
	if (!strcmp(mode, "read")) {
		int fd = open(argv[2], O_RDONLY | O_DIRECT);
		void *buffer;

		if (fd < 0 || posix_memalign(&buffer, 4096, 4096))
			return 1;
		ready();
		for (long i = 0; i < atol(argv[3]); i++)
			if (read_block(fd, buffer, i % 1024) != 4096)
				return 1;
		return 0;
	}
	ready();
	burn_caller(burn_red, burn_blue, number);
	return 0;
}
