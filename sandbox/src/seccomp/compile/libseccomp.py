"""Compiles a profile with libseccomp: the spec's JSON on stdin, classic BPF on stdout, names it does not know on stderr.

Exit code 3: no libseccomp.
"""

import ctypes
import json
import os
import sys

try:
    lib = ctypes.CDLL("libseccomp.so.2")
except OSError:
    sys.exit(3)

ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_TRAP": 0x30000, "SCMP_ACT_KILL_PROCESS": 0x80000000}
OPERATORS = {name: number for number, name in enumerate(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"], 1)}


class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def action(name, errno):
    return 0x50000 | (1 if errno is None else errno) if name == "SCMP_ACT_ERRNO" else ACTIONS[name]


def check(result):
    if result < 0:
        sys.exit(f"libseccomp: {os.strerror(-result)}")


lib.seccomp_init.restype = ctypes.c_void_p
profile = json.load(sys.stdin)
default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(default)))
lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
for architecture in profile["architectures"]:
    token = lib.seccomp_arch_resolve_name(architecture.removeprefix("SCMP_ARCH_").lower().encode())
    if lib.seccomp_arch_exist(context, ctypes.c_uint32(token)) != 0:
        check(lib.seccomp_arch_add(context, ctypes.c_uint32(token)))
for rule in profile["syscalls"]:
    what = action(rule["action"], rule.get("errnoRet"))
    comparisons = [
        Comparison(each["index"], OPERATORS[each["op"].removeprefix("SCMP_CMP_")], each["value"], each.get("valueTwo") or 0)
        for each in rule.get("args") or []
    ]
    array = (Comparison * max(len(comparisons), 1))(*comparisons)
    for name in rule["names"]:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            print(name, file=sys.stderr)
        elif what != default:
            check(lib.seccomp_rule_add_array(context, ctypes.c_uint32(what), number, len(comparisons), array))
check(lib.seccomp_export_bpf(context, 1))
