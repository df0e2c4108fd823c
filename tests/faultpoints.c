/* Counts what a process asks of the disk below one folder, and kills it or fails it at a chosen place.

   gcc -shared -fPIC -O1 faultpoints.c -ldl; LD_PRELOAD it, then call fault_arm. Nothing happens before that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4, UNLINK = 8, CREATE = 16, TRUNCATE = 32, MKDIR = 64, LOCK = 128, CLOSE = 256 };

struct board {          /* shared with the process that watches */
    long taken;         /* places so far */
    long struck;        /* how often one was failed */
    long kinds;         /* which kinds were failed */
};

static char root[PATH_MAX];
static size_t root_size;
static long at = -1;    /* the place, from 1 */
static int error;       /* 0: SIGKILL, half-way through a write */
static int kinds;       /* which kinds may fail */
static int lasting;     /* not only once */
static struct board *board;

void fault_arm(const char *folder, long place, int number, int which, int stays, struct board *shared) {
    strncpy(root, folder, sizeof root - 1);
    root_size = strlen(root);
    at = place, error = number, kinds = which, lasting = stays, board = shared;
}

static int inside(const char *path) {
    return !strncmp(path, root, root_size) && (path[root_size] == '/' || !path[root_size]);
}

static int below(const char *path) {
    char folder[PATH_MAX];
    if (path[0] == '/') return inside(path);
    return getcwd(folder, sizeof folder) && inside(folder);
}

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return inside(path);
}

/* Whether this place fails: then errno says how. Does not return from a kill. */
static int struck(int kind, int fd, const char *data, size_t size) {
    long number = __sync_add_and_fetch(&board->taken, 1);
    if (at <= 0 || number < at || !(kind & kinds) || (board->struck && !lasting)) return 0;
    __sync_add_and_fetch(&board->struck, 1);
    board->kinds |= kind;
    if (!error) {
        if (data && size > 1) {
            ssize_t (*half)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
            if (number % 2) half(fd, data, size / 2);
        }
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = error;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define ON_FD(kind, fd, data, size) (board && below_fd(fd) && struck(kind, fd, data, size))
#define ON_PATH(kind, path) (board && below(path) && struck(kind, -1, 0, 0))

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return ON_FD(WRITE, fd, data, size) ? -1 : real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t to) { REAL(pwrite); return ON_FD(WRITE, fd, 0, 0) ? -1 : real(fd, data, size, to); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t to) { REAL(pwrite64); return ON_FD(WRITE, fd, 0, 0) ? -1 : real(fd, data, size, to); }
int fsync(int fd) { REAL(fsync); return ON_FD(SYNC, fd, 0, 0) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return ON_FD(SYNC, fd, 0, 0) ? -1 : real(fd); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); return ON_FD(TRUNCATE, fd, 0, 0) ? -1 : real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); return ON_FD(TRUNCATE, fd, 0, 0) ? -1 : real(fd, size); }
int flock(int fd, int how) { REAL(flock); return ON_FD(LOCK, fd, 0, 0) ? -1 : real(fd, how); }
int close(int fd) {  /* the file is closed all the same, as Linux does */
    REAL(close);
    int failed = ON_FD(CLOSE, fd, 0, 0), number = errno, done = real(fd);
    if (failed) errno = number;
    return failed ? -1 : done;
}
int rename(const char *from, const char *to) { REAL(rename); return ON_PATH(RENAME, to) ? -1 : real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); return ON_PATH(RENAME, to) ? -1 : real(a, from, b, to); }
int link(const char *from, const char *to) { REAL(link); return ON_PATH(CREATE, to) ? -1 : real(from, to); }
int unlink(const char *path) { REAL(unlink); return ON_PATH(UNLINK, path) ? -1 : real(path); }
int unlinkat(int at_fd, const char *path, int flags) { REAL(unlinkat); return ON_PATH(UNLINK, path) ? -1 : real(at_fd, path, flags); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return ON_PATH(MKDIR, path) ? -1 : real(path, mode); }

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        return (flags & O_CREAT) && ON_PATH(CREATE, path) ? -1 : real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)
#define OPENS_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        return (flags & O_CREAT) && ON_PATH(CREATE, path) ? -1 : real(folder, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)
