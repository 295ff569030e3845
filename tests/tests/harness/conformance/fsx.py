"""Random I/O on one file beside a model in memory. Usage: fsx.py FILE SEED OPERATIONS

Reads, writes, appends, maps, truncates, punches holes, allocates and copies ranges, through several descriptors, some of
them with O_DIRECT; the file must always read as the model does, and its size must be the model's.
"""
import ctypes, errno, mmap, os, random, sys

LIMIT, PAGE = 1 << 19, 4096
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Fsx:
    def __init__(self, path, seed):
        self.path, self.random, self.log = path, random.Random(seed), []
        self.model = bytearray(open(path, "rb").read())
        self.open_all()

    def open_all(self):
        # The reader is first: what it opens may be in a lower still.
        self.reader = os.open(self.path, os.O_RDONLY)
        self.fds = [os.open(self.path, os.O_RDWR), os.open(self.path, os.O_RDWR)]
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def close_all(self):
        for fd in [self.reader, self.direct, *self.fds]:
            os.close(fd)

    def put(self, offset, data):
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset:offset + len(data)] = data

    def data(self, length):
        return bytes([self.random.randrange(1, 256)]) * length

    def range(self):
        return self.random.randrange(LIMIT // 2), self.random.randrange(1, 40_000)

    def read(self):
        offset, length = self.range()
        fd = self.random.choice([self.reader, *self.fds])
        self.check(os.pread(fd, length, offset), offset, length)

    def write(self):
        offset, length = self.range()
        data = self.data(length)
        os.pwrite(self.random.choice(self.fds), data, offset)
        self.put(offset, data)

    def append(self):
        if len(self.model) > LIMIT:
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        data = self.data(self.random.randrange(1, 5000))
        os.write(fd, data)
        os.close(fd)
        self.put(len(self.model), data)

    def direct_write(self):
        offset = self.random.randrange(LIMIT // 2 // PAGE) * PAGE
        buffer = mmap.mmap(-1, PAGE * self.random.randrange(1, 5))
        buffer[:] = self.data(len(buffer))
        os.pwritev(self.direct, [buffer], offset)
        self.put(offset, buffer[:])

    def direct_read(self):
        offset = self.random.randrange(LIMIT // 2 // PAGE) * PAGE
        buffer = mmap.mmap(-1, PAGE * 4)
        length = os.preadv(self.direct, [buffer], offset)
        self.check(buffer[:length], offset, PAGE * 4)

    def mapped(self, write):
        if not self.model:
            return
        start = self.random.randrange(len(self.model)) // PAGE * PAGE
        length = min(len(self.model) - start, 30_000)
        fd = self.random.choice(self.fds if write else [self.reader, *self.fds])
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        with mmap.mmap(fd, length, mmap.MAP_SHARED, protection, offset=start) as area:
            if write:
                data = self.data(self.random.randrange(1, length + 1))
                area[:len(data)] = data
                self.put(start, data)
                if self.random.randrange(2):
                    area.flush()
            self.check(area[:], start, length)

    def truncate(self):
        length = self.random.randrange(LIMIT)
        if self.random.randrange(2):
            os.truncate(self.path, length)
        else:
            os.ftruncate(self.random.choice(self.fds), length)
        if length < len(self.model):
            del self.model[length:]
        else:
            self.model.extend(bytes(length - len(self.model)))

    def empty(self):
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self.model.clear()

    def punch(self):
        offset, length = self.range()
        fallocate(self.random.choice(self.fds), 3, offset, length)
        end = min(offset + length, len(self.model))
        if offset < end:
            self.model[offset:end] = bytes(end - offset)

    def zero(self):
        offset, length = self.range()
        try:
            fallocate(self.random.choice(self.fds), 0x10, offset, length)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return
            raise
        self.put(offset, bytes(length))

    def allocate(self):
        offset, length = self.range()
        os.posix_fallocate(self.random.choice(self.fds), offset, length)
        if offset + length > len(self.model):
            self.model.extend(bytes(offset + length - len(self.model)))

    def copy(self):
        source, length = self.range()
        target = self.random.randrange(LIMIT // 2)
        if abs(source - target) < length or source + length > len(self.model):
            return
        done = os.copy_file_range(self.reader, self.fds[0], length, source, target)
        self.put(target, bytes(self.model[source:source + done]))

    def reopen(self):
        self.close_all()
        self.open_all()

    def sync(self):
        os.fsync(self.random.choice(self.fds))

    def check(self, found, offset, length):
        expected = bytes(self.model[offset:offset + length])
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
            raise SystemExit(f"at {offset + at}: {len(found)} bytes, {len(expected)} expected; last steps: {self.log[-12:]}")

    def run(self, count):
        steps = [self.read] * 4 + [self.write] * 4 + [self.append, self.direct_write, self.direct_read] * 2
        steps += [lambda: self.mapped(False), lambda: self.mapped(True)] * 2
        steps += [self.truncate, self.punch, self.zero, self.allocate, self.copy, self.copy, self.reopen, self.sync]
        names = {step: getattr(step, "__name__", "?") for step in steps}
        for number in range(count):
            step = self.empty if self.random.randrange(200) == 0 else self.random.choice(steps)
            self.log.append((number, names.get(step, "empty")))
            step()
            if os.fstat(self.reader).st_size != len(self.model) or os.stat(self.path).st_size != len(self.model):
                raise SystemExit(f"size {os.stat(self.path).st_size}, {len(self.model)} expected; {self.log[-12:]}")
            if number % 50 == 49:
                self.check(open(self.path, "rb").read(), 0, 1 << 30)
        self.check(open(self.path, "rb").read(), 0, 1 << 30)


Fsx(sys.argv[1], int(sys.argv[2])).run(int(sys.argv[3]))
