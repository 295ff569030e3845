"""What processes see of each other's changes to one file. Usage: coherence.py prepare|check|storm FOLDER CLASS [SECONDS]

`prepare` makes the files of a class in a folder that will be a lower; `check` prints a JSON object of check: answer, where
"ok" is what one filesystem without layers answers. Each check has files of its own, untouched before it.
"""
import ctypes, errno, fcntl, json, mmap, os, random, shutil, signal, stat, struct, subprocess, sys, time

NOBODY = 61999
SIZES = {"text": 9000, "elf": 0, "large": 2 << 20, "database": 2 << 20}


def content(kind):
    if kind == "elf":
        return open("/bin/sleep", "rb").read()
    head = b"SQLite format 3\0" if kind == "database" else b"#!/bin/sh\nexec sleep \"$@\"\n"
    return head + b"." * (SIZES[kind] - len(head))


def prepare(folder, kind):
    for check in CHECKS:
        path = os.path.join(folder, check.__name__)
        with open(path, "wb") as file:
            file.write(content(kind))
        os.chmod(path, 0o755)
        os.utime(path, (1000, 1000))
    os.link(os.path.join(folder, "second_link"), os.path.join(folder, "second_link.other"))
    for number in range(24):
        with open(os.path.join(folder, f"storm{number}"), "wb") as file:
            file.write(content(kind if number % 2 else "text"))


def child(function, *arguments):
    """Runs in a process of its own and returns what it returned, or the name of the error."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = function(*arguments)
        except OSError as error:
            answer = errno.errorcode[error.errno]
        except BaseException as error:
            answer = repr(error)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    data = b""
    while chunk := os.read(read, 65536):
        data += chunk
    os.close(read)
    os.waitpid(pid, 0)
    return json.loads(data or '"died"')


def write_at(path, offset, data, flags=os.O_RDWR):
    fd = os.open(path, flags)
    os.pwrite(fd, data, offset)
    os.close(fd)
    return "ok"


def same_file(*stats):
    return "ok" if len({(one.st_dev, one.st_ino) for one in stats}) == 1 else "numbers differ"


def rw_beside_reader(path):
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_RDWR)
    os.pwrite(writer, b"NEW", 4)
    if os.pread(writer, 3, 4) != b"NEW" or open(path, "rb").read()[4:7] != b"NEW":
        return "lost"
    return same_file(os.fstat(reader), os.fstat(writer), os.stat(path))


def truncating_open_beside_reader(path):
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(writer, b"short")
    if open(path, "rb").read() != b"short":
        return "lost"
    return same_file(os.fstat(reader), os.fstat(writer), os.stat(path))


def appending_open_beside_reader(path):
    reader, size = os.open(path, os.O_RDONLY), os.stat(path).st_size
    writer = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(writer, b"tail")
    if os.stat(path).st_size != size + 4 or open(path, "rb").read()[-4:] != b"tail":
        return "lost"
    return same_file(os.fstat(reader), os.fstat(writer), os.stat(path))


def truncate_by_name_beside_reader(path):
    reader = os.open(path, os.O_RDONLY)
    os.truncate(path, 100)
    if len(open(path, "rb").read()) != 100:
        return "lost"
    return "ok" if os.fstat(reader).st_size == 100 else "old size"


def old_descriptor_sees_size(path):
    reader, size = os.open(path, os.O_RDONLY), os.stat(path).st_size
    child(write_at, path, size, b"more")
    return "ok" if os.fstat(reader).st_size == size + 4 else "old size"


def old_descriptor_reads_new_data(path):
    reader = os.open(path, os.O_RDONLY)
    os.pread(reader, 100, 0)
    child(write_at, path, 4, b"NEW")
    return "ok" if os.pread(reader, 3, 4) == b"NEW" else "old data"


def old_mapping_shows_new_data(path):
    reader = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(reader, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    mapped[4:7]
    child(write_at, path, 4, b"NEW")
    return "ok" if mapped[4:7] == b"NEW" else "old data"


def old_private_mapping_keeps_what_it_wrote(path):
    reader = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(reader, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[4:7] = b"own"
    child(write_at, path, 4, b"NEW")
    return "ok" if mapped[4:7] == b"own" and open(path, "rb").read()[4:7] == b"NEW" else "mixed up"


def tail_sees_what_is_appended(path):
    reader = os.open(path, os.O_RDONLY)
    os.lseek(reader, 0, os.SEEK_END)
    child(write_at, path, os.stat(path).st_size, b"line\n")
    return "ok" if os.read(reader, 100) == b"line\n" else "nothing"


def conflict(lock, path, flags):
    fd = os.open(path, flags)
    try:
        lock(fd)
    except OSError as error:
        return "ok" if error.errno in (errno.EAGAIN, errno.EACCES) else errno.errorcode[error.errno]
    return "granted twice"


def flocks_meet(path):
    reader = os.open(path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_EX)
    return child(conflict, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), path, os.O_RDWR)


def flocks_survive_copy_up(path):
    reader = os.open(path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_EX)
    child(write_at, path, 4, b"NEW")
    return child(conflict, lambda fd: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB), path, os.O_RDONLY)


def posix_locks_meet(path):
    reader = os.open(path, os.O_RDONLY)
    fcntl.lockf(reader, fcntl.LOCK_SH)
    return child(conflict, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), path, os.O_RDWR)


def ofd_locks_meet(path):
    lock = lambda fd, kind: fcntl.fcntl(fd, 37, struct.pack("hhqqixxxx", kind, 0, 0, 0, 0))
    reader = os.open(path, os.O_RDONLY)
    lock(reader, fcntl.F_RDLCK)
    return conflict(lambda fd: lock(fd, fcntl.F_WRLCK), path, os.O_RDWR)


def leases_are_broken(path):
    reader = os.open(path, os.O_RDONLY)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    answer = child(lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK)))
    fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return "ok" if answer == "EAGAIN" else f"opened: {answer}"


def watch(watched, path):
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, watched.encode(), 0x2)  # IN_MODIFY
    child(write_at, path, 4, b"NEW")
    try:
        return "ok" if os.read(fd, 4096) else "nothing"
    except BlockingIOError:
        return "nothing"


def watch_of_the_file_fires(path):
    reader = os.open(path, os.O_RDONLY)
    return watch(path, path)


def watch_of_the_folder_fires(path):
    reader = os.open(path, os.O_RDONLY)
    return watch(os.path.dirname(path), path)


def reopen(fd, flags):
    again = os.open(f"/proc/self/fd/{fd}", flags)
    if flags == os.O_RDWR:
        os.pwrite(again, b"NEW", 4)
    return "ok" if flags == os.O_RDONLY or os.pread(again, 3, 4) == b"NEW" else "lost"


def reader_is_reopened_for_writing(path):
    return reopen(os.open(path, os.O_RDONLY), os.O_RDWR)


def path_is_reopened_for_writing_beside_reader(path):
    reader = os.open(path, os.O_RDONLY)
    return reopen(os.open(path, os.O_PATH), os.O_RDWR)


def path_is_reopened_for_writing(path):
    return reopen(os.open(path, os.O_PATH), os.O_RDWR)


def reader_is_reopened_for_reading(path):
    reader = os.open(path, os.O_RDONLY)
    child(write_at, path, 4, b"NEW")
    return reopen(reader, os.O_RDONLY)


def exclusive_creation_is_refused(path):
    reader = os.open(path, os.O_RDONLY)
    answer = child(lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    return "ok" if answer == "EEXIST" else answer


def second_link(path):
    reader = os.open(path + ".other", os.O_RDONLY)
    write_at(path, 4, b"NEW")
    if open(path + ".other", "rb").read()[4:7] != b"NEW":
        return "old data"
    return same_file(os.stat(path), os.stat(path + ".other"), os.fstat(reader))


def running_program(path, change):
    if open(path, "rb").read(4) != b"\x7fELF":
        return "ok"
    process = subprocess.Popen([path, "30"])
    answer = child(change, path)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return "ok" if answer == "ETXTBSY" and alive else f"{answer}, {'running' if alive else 'died'}"


def running_program_is_not_written(path):
    return running_program(path, lambda path: os.open(path, os.O_RDWR))


def running_program_is_not_truncated(path):
    return running_program(path, lambda path: os.truncate(path, 0))


def program_being_written_does_not_run(path):
    writer = os.open(path, os.O_WRONLY)
    try:
        subprocess.run([path, "0"], close_fds=False)
    except OSError as error:
        return "ok" if error.errno == errno.ETXTBSY else errno.errorcode[error.errno]
    return "it ran"


def program_runs_after_it_was_written(path):
    data = open(path, "rb").read()
    reader = os.open(path, os.O_RDONLY)
    write_at(path, 0, data[:100])
    if data[:4] != b"\x7fELF" and not data.startswith(b"#!"):
        return "ok"
    return "ok" if subprocess.run([path, "0"]).returncode == 0 else "failed"


def unlinked_after_the_split(path):
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    os.pwrite(writer, b"NEW", 4)
    os.unlink(path)
    for fd in (reader, writer):
        if os.fstat(fd).st_nlink != 0:
            return "links left"
        os.fchmod(fd, 0o640)
    os.ftruncate(writer, 50)
    os.pwrite(writer, b"more", 50)
    if os.fstat(writer).st_size != 54:
        return "lost"
    again = os.open(f"/proc/self/fd/{writer}", os.O_RDWR)
    return "ok" if os.pread(again, 4, 50) == b"more" else "lost"


def renamed_after_the_split(path):
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    os.pwrite(writer, b"NEW", 4)
    os.rename(path, path + ".moved")
    os.link(path + ".moved", path)
    if same_file(os.stat(path), os.stat(path + ".moved"), os.fstat(reader)) != "ok":
        return "numbers differ"
    open(path + ".over", "w").write("over")
    os.rename(path + ".over", path)
    if open(path).read() != "over" or os.fstat(writer).st_nlink != 1:
        return "lost"
    return "ok" if open(path + ".moved", "rb").read()[4:7] == b"NEW" else "lost"


def changed_by_name_then_written(path):
    reader = os.open(path, os.O_RDONLY)
    os.chmod(path, 0o700)
    os.rename(path, path + ".moved")
    write_at(path + ".moved", 4, b"NEW")
    os.pread(reader, 1, 0)
    if open(path + ".moved", "rb").read()[4:7] != b"NEW":
        return "lost"
    return same_file(os.stat(path + ".moved"), os.fstat(reader))


def ranges_are_copied(path):
    data = open(path, "rb").read()
    reader = os.open(path, os.O_RDONLY)
    target = os.open(path + ".copy", os.O_RDWR | os.O_CREAT, 0o600)
    done = 0
    while done < len(data):
        step = os.copy_file_range(reader, target, len(data) - done, done, done)
        if step == 0:
            return "short"
        done += step
    return "ok" if open(path + ".copy", "rb").read() == data else "other data"


def space_is_allocated(path):
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    size = os.stat(path).st_size
    os.posix_fallocate(writer, size, 1000)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(writer, 3, ctypes.c_long(0), ctypes.c_long(4096)) != 0:  # keep size, punch hole
        return errno.errorcode[ctypes.get_errno()]
    return "ok" if os.stat(path).st_size == size + 1000 and os.pread(writer, 4096, 0) == bytes(4096) else "lost"


def file_grows_over_a_mebibyte(path):
    reader = os.open(path, os.O_RDONLY)
    size = os.stat(path).st_size
    child(write_at, path, size, b"g" * (3 << 20))
    later = os.open(path, os.O_RDONLY)
    child(write_at, path, size + (2 << 20), b"NEW")
    if os.pread(later, 3, size + (2 << 20)) != b"NEW" or os.fstat(reader).st_size != size + (3 << 20):
        return "old data"
    return same_file(os.fstat(reader), os.fstat(later), os.stat(path))


def file_becomes_a_program_while_open(path):
    reader = os.open(path, os.O_RDONLY)
    os.chmod(path, 0o600)
    elf = open("/bin/sleep", "rb").read()
    child(write_at, path, 0, elf)
    child(lambda: os.truncate(path, len(elf)))
    os.chmod(path, 0o755)
    if subprocess.run([path, "0"]).returncode != 0:
        return "does not run"
    child(write_at, path, len(elf), b"NEW")
    return same_file(os.fstat(reader), os.stat(path)) if open(path, "rb").read()[-3:] == b"NEW" else "old data"


def stores_move_the_time(path):
    writer = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(writer, 4096)
    os.close(writer)
    os.utime(path, (5, 5))
    mapped[4:7] = b"NEW"
    mapped.flush()
    if child(lambda: os.stat(path).st_mtime) < 6:
        return "old time"
    return "ok" if child(lambda: open(path, "rb").read()[4:7].decode()) == "NEW" else "lost"


def mappings_of_two_are_one(path):
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    first, second = mmap.mmap(one, 4096), mmap.mmap(two, 4096)
    first[4:7] = b"NEW"
    if second[4:7] != b"NEW" or os.pread(two, 3, 4) != b"NEW":
        return "apart"
    os.pwrite(one, b"OLD", 4)
    return "ok" if first[4:7] == b"OLD" else "apart"


def direct_io(path):
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    buffer[:4096] = b"D" * 4096
    if os.pwritev(writer, [buffer], 4096) != 4096:
        return "short"
    buffer[:4096] = bytes(4096)
    os.preadv(writer, [buffer], 4096)
    return "ok" if buffer[:4096] == b"D" * 4096 and open(path, "rb").read()[4096:8192] == b"D" * 4096 else "lost"


def two_append(path):
    size = os.stat(path).st_size
    one, two = os.open(path, os.O_WRONLY | os.O_APPEND), os.open(path, os.O_WRONLY | os.O_APPEND)
    for fd in (one, two, one, two):
        os.write(fd, b"line")
    return "ok" if open(path, "rb").read()[size:] == b"line" * 4 else "lost"


def as_nobody(path, change):
    os.chown(path, NOBODY, NOBODY)
    os.chmod(path, 0o6777)
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))

    def run():
        os.setgroups([NOBODY, NOBODY + 1])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        change()
        return "ok"

    answer = child(run)
    if answer != "ok":
        return answer
    mode = stat.S_IMODE(os.stat(path).st_mode)
    try:
        os.getxattr(path, "security.capability")
        return f"{mode:o} and a capability"
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    return "ok" if mode & 0o6000 == 0 else f"{mode:o}"


def privileges_go_by_write(path):
    return as_nobody(path, lambda: write_at(path, 4, b"NEW", os.O_WRONLY))


def privileges_go_by_write_beside_reader(path):
    reader = os.open(path, os.O_RDONLY)
    return as_nobody(path, lambda: write_at(path, 4, b"NEW", os.O_WRONLY))


def privileges_go_by_truncate(path):
    return as_nobody(path, lambda: os.truncate(path, 10))


def privileges_go_by_truncating_open(path):
    return as_nobody(path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))


def privileges_go_by_allocation(path):
    return as_nobody(path, lambda: os.posix_fallocate(os.open(path, os.O_WRONLY), os.stat(path).st_size, 100))


def privileges_go_by_copied_range(path):
    def change():
        source = os.open(path, os.O_RDONLY)
        if os.copy_file_range(source, os.open(path, os.O_WRONLY), 10, 0, 5000) != 10:
            raise RuntimeError("short")

    return as_nobody(path, change)


def privileges_go_by_chown(path):
    return as_nobody(path, lambda: os.chown(path, -1, NOBODY + 1))


def storm(folder, seconds):
    """Many open, read, write, map, replace and close the same files; nobody may get an error."""
    paths = [os.path.join(folder, f"storm{number}") for number in range(24)]
    end = time.monotonic() + seconds

    def work(seed):
        chance, done = random.Random(seed), 0
        held = []
        while time.monotonic() < end:
            path, action = chance.choice(paths), chance.randrange(10)
            if action < 5:
                fd = os.open(path, os.O_RDONLY)
                if len(os.pread(fd, 64, 0)) != 64:
                    return f"{path} is short"
                held.append(fd)
            elif action < 8:
                fd = os.open(path, os.O_RDWR)
                os.pwrite(fd, b"w" * 64, 64 * chance.randrange(1, 100))
                held.append(fd)
            elif action == 8:
                os.chmod(path, chance.choice([0o644, 0o755]))
                os.utime(path)
            else:
                fd = os.open(path, os.O_RDONLY)
                with mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                    mapped[100]
                os.close(fd)
            while len(held) > chance.randrange(12):
                os.close(held.pop(0))
            done += 1
        return done

    workers = []
    for seed in range(8):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                answer = work(seed)
            except OSError as error:
                answer = f"{errno.errorcode[error.errno]} of {error.filename}"
            except BaseException as error:
                answer = repr(error)
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
        os.close(write)
        workers.append((pid, read))
    answers = []
    for pid, read in workers:
        answers.append(json.loads(os.read(read, 65536) or '"died"'))
        os.waitpid(pid, 0)
    wrong = [answer for answer in answers if not isinstance(answer, int)]
    return {"storm": "ok" if not wrong else str(wrong), "opens": str(sum(a for a in answers if isinstance(a, int)))}


CHECKS = [
    value
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", None) == "__main__" and value.__code__.co_varnames[:1] == ("path",)
    and value.__code__.co_argcount == 1
]

if __name__ == "__main__":
    mode, folder, kind = sys.argv[1:4]
    if mode == "prepare":
        prepare(folder, kind)
    elif mode == "storm":
        print(json.dumps(storm(folder, float(sys.argv[4]))))
    else:
        print(json.dumps({check.__name__: child(check, os.path.join(folder, check.__name__)) for check in CHECKS}))
