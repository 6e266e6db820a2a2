/* Lets the time of day of a process be stepped from outside, as a clock that is set would be.
 *
 * Loaded ahead of the C library (LD_PRELOAD). What FRAUD_DRILL_CLOCK names holds, as eight bytes
 * in the machine's order, by how many nanoseconds the time of day is off. The monotonic clocks are
 * left alone, as those that a step leaves alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL

static const volatile int64_t *off_ns;
static int (*clock_of_libc)(clockid_t, struct timespec *);

__attribute__((constructor)) static void open_off(void)
{
    const char *path = getenv("FRAUD_DRILL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *found = mmap(NULL, sizeof *off_ns, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED)
        off_ns = found;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!clock_of_libc)
        *(void **)&clock_of_libc = dlsym(RTLD_NEXT, "clock_gettime");
    int status = clock_of_libc(clock, now);
    if (status || !off_ns || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return status;
    int64_t ns = now->tv_nsec + *off_ns % NS;
    now->tv_sec += *off_ns / NS + (ns >= NS) - (ns < 0);
    now->tv_nsec = ns + (ns < 0 ? NS : 0) - (ns >= NS ? NS : 0);
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec found;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found))
        return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec found;
    if (clock_gettime(CLOCK_REALTIME, &found))
        return -1;
    if (now)
        *now = found.tv_sec;
    return found.tv_sec;
}
