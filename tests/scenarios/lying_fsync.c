/* A disk that says "synced" and has done nothing: what acknowledges on its word acknowledges too early. */

int fsync(int fd) {
    (void)fd;
    return 0;
}

int fdatasync(int fd) {
    (void)fd;
    return 0;
}
