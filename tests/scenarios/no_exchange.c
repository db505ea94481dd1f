/* A file system that can't exchange two folders in one step: renameat2 with flags is refused, as NFS does. */
#include <errno.h>

int renameat2(int old_folder, const char *old_path, int new_folder, const char *new_path, unsigned int flags)
{
    (void)old_folder, (void)old_path, (void)new_folder, (void)new_path, (void)flags;
    errno = EINVAL;
    return -1;
}
