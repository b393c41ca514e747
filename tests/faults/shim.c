/* Faults under a real daemon: loaded by LD_PRELOAD, it answers some libc calls in the kernel's
 * place, but only for the database files of one home and for what becomes the file of a sink.
 * Tests alone build and load it (tests/faults/shim.rs, which also writes the control file). It
 * allocates nothing, asks the kernel directly for everything, and touches no other descriptor.
 *
 * KEYWHEEL_FAULTS names the control file: PAGE bytes, mapped shared, whose words (struct control
 * below, `Word` in shim.rs) may be changed at any time. All zero: nothing is done but counting.
 * Workers and the compiler start with an empty environment, so it is in the daemon alone.
 *
 *   home         the folder, ended by a zero byte. Its keywheel.db, -wal and -shm are watched.
 *   fail_*       an errno for the next `left` writes (write, pwrite, ftruncate) or syncs (fsync,
 *                fdatasync) of the files in `files`, after `skip` of them went well. A `left` of
 *                FOREVER lasts until it is set to 0.
 *   delay_ms     how long each sync takes more.
 *   kill_*       SIGKILL at the `at`-th write or sync of the files in `files`, counted in `done`
 *                since the test set that to 0: before it is carried out, or with `after` once it
 *                is. An `at` of 0 only counts.
 *   images       keeps FILE.synced beside each of the first two: what a power cut leaves of it.
 *                To be set before the daemon starts.
 *   clock_ns     is added to CLOCK_REALTIME as the process sees it. The monotonic clocks stay, and
 *                so do the times of files and what the kernel and other processes see.
 *   steady_ns    is added to the monotonic clocks, and may only grow. The kernel's own timers know
 *                nothing of it; set on a stopped process together with clock_ns it makes the stop
 *                seem as much longer.
 *   writes, syncs, failed_writes, failed_syncs    counts, over all files.
 *   unnamed      files that were created and whose folder was not synced since: a power cut leaves
 *                none of them.
 *
 * What an image holds. Before the process opened a file it counts as durable as it is. After
 * that a page gets into the image only by a sync that went well, and the length likewise. A
 * sync that fails forgets which pages were dirty, as Linux does: they look clean in the cache
 * and never reach the disk, unless they are written again. So a later sync that succeeds covers
 * only what was written after the failed one. (Linux may also write a page by itself before any
 * sync. The images are the other extreme: nothing that wasn't asked for. A plain kill -9 leaves
 * the one where everything was.) A directory's sync makes names durable, and never fails here.
 *
 * Files are known by the descriptors that open and openat returned. Nothing in the daemon
 * duplicates those or maps those files but SQLite's -shm, which a restart after a power cut
 * makes anew in any case. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define PAGE 8192
#define FOREVER UINT64_MAX
#define NANOS 1000000000LL

enum { DB = 1, WAL = 2, SHM = 4, FOLDER = 8, SINK = 16 };

typedef _Atomic uint64_t word;

struct control {
    word fail_write_errno, fail_write_left, fail_write_skip, fail_write_files;
    word fail_sync_errno, fail_sync_left, fail_sync_skip, fail_sync_files;
    word delay_ms;
    word kill_at, kill_after, kill_files, done;
    word images;
    _Atomic int64_t clock_ns, steady_ns;
    word writes, syncs, failed_writes, failed_syncs;
    word unnamed;
    char home[PAGE - 4096];
};

static struct control *control;

/* Which file a descriptor is of; 0 for all others. */
#define DESCRIPTORS 65536
static _Atomic unsigned char kind_of[DESCRIPTORS];

/* One watched file and the pages that no sync has covered: enough for 1 GiB. */
#define DISK_PAGE 4096
#define DISK_PAGES (1 << 18)
struct image {
    pthread_mutex_t lock;
    ino_t inode;
    int fd; /* Of the image itself. */
    uint64_t dirty[DISK_PAGES / 64];
};
static struct image images[2] = {
    {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1},
    {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1},
};

static struct image *image_of(int kind) { return kind == DB ? &images[0] : kind == WAL ? &images[1] : NULL; }

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("KEYWHEEL_FAULTS");
    if (path == NULL) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    /* A test that believes in faults which never come would pass for nothing. */
    if (map == MAP_FAILED) abort();
    syscall(SYS_close, fd);
    control = map;
}

/* Takes one from a counter that is above zero. */
static int take(word *counter) {
    uint64_t left = atomic_load(counter);
    do {
        if (left == 0) return 0;
        if (left == FOREVER) return 1;
    } while (!atomic_compare_exchange_weak(counter, &left, left - 1));
    return 1;
}

static int kind(int fd) {
    return control == NULL || fd < 0 || fd >= DESCRIPTORS ? 0 : atomic_load(&kind_of[fd]);
}

/* Where in the order of writes and syncs this one is; dies before it if it must. */
static uint64_t arrive(int kind) {
    if ((atomic_load(&control->kill_files) & (uint64_t)kind) == 0) return 0;
    uint64_t number = atomic_fetch_add(&control->done, 1) + 1;
    if (number == atomic_load(&control->kill_at) && !atomic_load(&control->kill_after)) kill(getpid(), SIGKILL);
    return number;
}

static void leave(uint64_t number) {
    if (number == 0 || number != atomic_load(&control->kill_at) || !atomic_load(&control->kill_after)) return;
    int kept = errno;
    kill(getpid(), SIGKILL);
    errno = kept;
}

static int must_fail(int kind, word *error, word *left, word *skip, word *files) {
    if ((atomic_load(files) & (uint64_t)kind) == 0 || atomic_load(left) == 0) return 0;
    if (take(skip)) return 0;
    return take(left) ? (int)atomic_load(error) : 0;
}

static int write_must_fail(int kind) {
    atomic_fetch_add(&control->writes, 1);
    int error = must_fail(kind, &control->fail_write_errno, &control->fail_write_left,
                          &control->fail_write_skip, &control->fail_write_files);
    if (error) atomic_fetch_add(&control->failed_writes, 1);
    return error;
}

/* Images */

static void mark(struct image *image, off_t from, off_t until) {
    for (off_t page = from / DISK_PAGE; page * DISK_PAGE < until && page < DISK_PAGES; page++)
        image->dirty[page / 64] |= UINT64_C(1) << (page % 64);
}

static void copy_page(int from, int to, off_t page) {
    char bytes[DISK_PAGE];
    ssize_t length = syscall(SYS_pread64, from, bytes, sizeof bytes, page * DISK_PAGE);
    if (length > 0) syscall(SYS_pwrite64, to, bytes, (size_t)length, page * DISK_PAGE);
}

/* Makes the image of a file that was opened, where there is none of that very file. */
static void begin_image(int kind, int fd, int created) {
    struct image *image = image_of(kind);
    struct stat of;
    if (image == NULL || !atomic_load(&control->images) || fstat(fd, &of) != 0) return;
    pthread_mutex_lock(&image->lock);
    /* A new file may have the inode of the one before it. */
    if (image->fd < 0 || image->inode != of.st_ino || created) {
        char path[PATH_MAX];
        strcpy(path, control->home);
        strcat(path, kind == DB ? "/keywheel.db.synced" : "/keywheel.db-wal.synced");
        if (image->fd >= 0) syscall(SYS_close, image->fd);
        int flags = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC;
        image->fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0600);
        if (image->fd < 0) abort();
        image->inode = of.st_ino;
        memset(image->dirty, 0, sizeof image->dirty);
        for (off_t page = 0; page * DISK_PAGE < of.st_size; page++) copy_page(fd, image->fd, page);
        if (created) atomic_fetch_or(&control->unnamed, (uint64_t)kind);
        else atomic_fetch_and(&control->unnamed, ~(uint64_t)kind);
    }
    pthread_mutex_unlock(&image->lock);
}

static void written(int kind, off_t from, off_t until) {
    struct image *image = image_of(kind);
    if (image == NULL || !atomic_load(&control->images)) return;
    pthread_mutex_lock(&image->lock);
    mark(image, from, until);
    pthread_mutex_unlock(&image->lock);
}

static void synced(int kind, int fd, int went_well) {
    struct image *image = image_of(kind);
    struct stat of;
    if (image == NULL || !atomic_load(&control->images)) return;
    pthread_mutex_lock(&image->lock);
    if (image->fd >= 0 && went_well && fstat(fd, &of) == 0) {
        for (off_t group = 0; group < DISK_PAGES / 64; group++) {
            for (off_t page = group * 64; image->dirty[group] && page < group * 64 + 64; page++)
                if (image->dirty[group] >> (page % 64) & 1) copy_page(fd, image->fd, page);
        }
        syscall(SYS_ftruncate, image->fd, of.st_size);
    }
    memset(image->dirty, 0, sizeof image->dirty);
    pthread_mutex_unlock(&image->lock);
}

/* Files */

static int kind_of_path(const char *path) {
    /* What becomes the file of a sink, wherever that is. */
    size_t length = strlen(path);
    if (length > 9 && strcmp(path + length - 9, ".keywheel") == 0) return SINK;
    size_t home = strlen(control->home);
    if (home == 0 || strncmp(path, control->home, home) != 0) return 0;
    const char *name = path + home;
    if (*name == '\0') return FOLDER;
    if (strcmp(name, "/keywheel.db") == 0) return DB;
    if (strcmp(name, "/keywheel.db-wal") == 0) return WAL;
    return strcmp(name, "/keywheel.db-shm") == 0 ? SHM : 0;
}

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    int kind = control == NULL || path == NULL ? 0 : kind_of_path(path);
    int is_new = 0;
    if (kind == DB || kind == WAL) {
        struct stat there;
        is_new = flags & O_CREAT && stat(path, &there) != 0 && errno == ENOENT;
    }
    int fd = (int)syscall(SYS_openat, folder, path, flags, mode);
    if (fd < 0 || fd >= DESCRIPTORS || control == NULL) return fd;
    atomic_store(&kind_of[fd], (unsigned char)kind);
    if (kind != 0) {
        int kept = errno;
        begin_image(kind, fd, is_new);
        errno = kept;
    }
    return fd;
}

#define MODE_OF(flags, mode)                                                                       \
    mode_t mode = 0;                                                                               \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                 \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode = va_arg(more, mode_t);                                                               \
        va_end(more);                                                                              \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(AT_FDCWD, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(folder, path, flags, mode);
}

int close(int fd) {
    if (kind(fd) != 0) atomic_store(&kind_of[fd], 0);
    return (int)syscall(SYS_close, fd);
}

/* Writes */

ssize_t write(int fd, const void *bytes, size_t length) {
    int of = kind(fd);
    if (of == 0 || of == FOLDER) return syscall(SYS_write, fd, bytes, length);
    uint64_t number = arrive(of);
    int error = write_must_fail(of);
    if (error) {
        errno = error;
        return -1;
    }
    off_t from = lseek(fd, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_write, fd, bytes, length);
    if (done > 0) written(of, from, from + done);
    leave(number);
    return done;
}

static ssize_t write_at(int fd, const void *bytes, size_t length, off_t from) {
    int of = kind(fd);
    if (of == 0 || of == FOLDER) return syscall(SYS_pwrite64, fd, bytes, length, from);
    uint64_t number = arrive(of);
    int error = write_must_fail(of);
    if (error) {
        errno = error;
        return -1;
    }
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, length, from);
    if (done > 0) written(of, from, from + done);
    leave(number);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t from) { return write_at(fd, bytes, length, from); }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t from) { return write_at(fd, bytes, length, from); }

static int truncate_to(int fd, off_t length) {
    int of = kind(fd);
    if (of == 0 || of == FOLDER) return (int)syscall(SYS_ftruncate, fd, length);
    uint64_t number = arrive(of);
    int error = write_must_fail(of);
    if (error) {
        errno = error;
        return -1;
    }
    struct stat before;
    int known = fstat(fd, &before) == 0;
    int done = (int)syscall(SYS_ftruncate, fd, length);
    /* What was cut off and comes back is zero, whatever the image had there. */
    if (done == 0 && known && before.st_size > length) written(of, length, before.st_size);
    leave(number);
    return done;
}

int ftruncate(int fd, off_t length) { return truncate_to(fd, length); }
int ftruncate64(int fd, off_t length) { return truncate_to(fd, length); }

/* Syncs */

static int sync_file(int fd, long call) {
    int of = kind(fd);
    if (of == 0) return (int)syscall(call, fd);
    if (of == FOLDER) {
        int done = (int)syscall(call, fd);
        if (done == 0) atomic_store(&control->unnamed, 0);
        return done;
    }
    uint64_t number = arrive(of);
    atomic_fetch_add(&control->syncs, 1);
    uint64_t ms = atomic_load(&control->delay_ms);
    if (ms != 0) {
        struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000 * 1000000)};
        while (syscall(SYS_nanosleep, &left, &left) != 0 && errno == EINTR) {}
    }
    int error = must_fail(of, &control->fail_sync_errno, &control->fail_sync_left,
                          &control->fail_sync_skip, &control->fail_sync_files);
    int done = -1;
    if (error) {
        atomic_fetch_add(&control->failed_syncs, 1);
        errno = error;
    } else {
        done = (int)syscall(call, fd);
    }
    int kept = errno;
    synced(of, fd, done == 0);
    leave(number);
    errno = kept;
    return done;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

/* Clocks */

static void shift(struct timespec *now, _Atomic int64_t *by) {
    int64_t offset = atomic_load(by);
    int64_t nanos = (int64_t)now->tv_nsec + offset % NANOS;
    now->tv_sec += offset / NANOS + (nanos < 0 ? -1 : nanos >= NANOS ? 1 : 0);
    now->tv_nsec = (long)((nanos + NANOS) % NANOS);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, clock, now);
    if (done != 0 || control == NULL) return done;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE: shift(now, &control->clock_ns); break;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME: shift(now, &control->steady_ns); break;
    }
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
    *now = (struct timeval){.tv_sec = exact.tv_sec, .tv_usec = exact.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *out) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
    if (out != NULL) *out = exact.tv_sec;
    return exact.tv_sec;
}
