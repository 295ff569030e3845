//! Device rules as an eBPF program, for cgroup v2.

use strata_sys::bpf::BpfInstruction;

use super::devices::{DeviceKind, DeviceRule};

/// Compiles `rules`. The last rule that matches decides; without one the access is denied.
///
/// An allow rule matches when it covers every access that is asked for, a deny rule when it touches any of them.
pub(super) fn compile(rules: &[DeviceRule]) -> Vec<BpfInstruction> {
    // r1 is the context: { u32 access << 16 | type, u32 major, u32 minor }.
    let mut program = vec![
        insn(LOAD_U32, R2, R1, 0, 0),
        insn(MOVE32, R3, R2, 0, 0),
        insn(AND32_IMMEDIATE, R2, 0, 0, 0xffff),
        insn(SHIFT_RIGHT32_IMMEDIATE, R3, 0, 0, 16),
        insn(LOAD_U32, R4, R1, 4, 0),
        insn(LOAD_U32, R5, R1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let start = program.len();
        let mut jumps = Vec::new();
        let mut unless = |program: &mut Vec<BpfInstruction>, test: BpfInstruction| {
            jumps.push(program.len());
            program.push(test);
        };
        match rule.kind {
            DeviceKind::Any => {}
            DeviceKind::Block => unless(&mut program, insn(JUMP_NOT_EQUAL_IMMEDIATE, R2, 0, 0, TYPE_BLOCK)),
            DeviceKind::Char => unless(&mut program, insn(JUMP_NOT_EQUAL_IMMEDIATE, R2, 0, 0, TYPE_CHAR)),
        }
        if rule.access != ALL_ACCESS {
            program.push(insn(MOVE32, R1, R3, 0, 0));
            program.push(insn(AND32_IMMEDIATE, R1, 0, 0, i32::from(rule.access)));
            if rule.allow {
                unless(&mut program, insn(JUMP_NOT_EQUAL_REGISTER, R1, R3, 0, 0));
            } else {
                unless(&mut program, insn(JUMP_EQUAL_IMMEDIATE, R1, 0, 0, 0));
            }
        }
        if let Some(major) = rule.major {
            unless(&mut program, insn(JUMP_NOT_EQUAL_IMMEDIATE, R4, 0, 0, major.cast_signed()));
        }
        if let Some(minor) = rule.minor {
            unless(&mut program, insn(JUMP_NOT_EQUAL_IMMEDIATE, R5, 0, 0, minor.cast_signed()));
        }
        program.push(insn(MOVE64_IMMEDIATE, R0, 0, 0, i32::from(rule.allow)));
        program.push(insn(EXIT, 0, 0, 0, 0));
        let end = program.len();
        for jump in jumps {
            program[jump].offset = i16::try_from(end - jump - 1).expect("a rule is at most a dozen instructions");
        }
        // The verifier refuses code that nothing reaches, and after a rule for everything nothing is reached.
        if end - start == 2 {
            return program;
        }
    }
    program.push(insn(MOVE64_IMMEDIATE, R0, 0, 0, 0));
    program.push(insn(EXIT, 0, 0, 0, 0));
    program
}

const fn insn(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> BpfInstruction {
    BpfInstruction { code, registers: destination | source << 4, offset, immediate }
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;

const LOAD_U32: u8 = 0x61;
const MOVE32: u8 = 0xbc;
const MOVE64_IMMEDIATE: u8 = 0xb7;
const AND32_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT32_IMMEDIATE: u8 = 0x74;
const JUMP_EQUAL_IMMEDIATE: u8 = 0x15;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const ALL_ACCESS: u8 = 7;

#[cfg(test)]
mod tests {
    use super::super::devices::{MKNOD, READ, WRITE, docker_device_rules};
    use super::*;

    /// Runs a program on one access, as the kernel would.
    fn run(program: &[BpfInstruction], access: u8, kind: i32, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | kind.cast_unsigned(), major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        loop {
            let insn = program[at];
            let to = usize::from(insn.registers & 15);
            let from = usize::from(insn.registers >> 4);
            let immediate = u64::from(insn.immediate.cast_unsigned());
            let target = at.wrapping_add_signed(isize::from(insn.offset)) + 1;
            at += 1;
            match insn.code {
                LOAD_U32 => registers[to] = u64::from(context[usize::try_from(insn.offset).unwrap() / 4]),
                MOVE32 => registers[to] = registers[from],
                MOVE64_IMMEDIATE => registers[to] = immediate,
                AND32_IMMEDIATE => registers[to] &= immediate,
                SHIFT_RIGHT32_IMMEDIATE => registers[to] >>= immediate,
                JUMP_EQUAL_IMMEDIATE if registers[to] == immediate => at = target,
                JUMP_NOT_EQUAL_IMMEDIATE if registers[to] != immediate => at = target,
                JUMP_NOT_EQUAL_REGISTER if registers[to] != registers[from] => at = target,
                JUMP_EQUAL_IMMEDIATE | JUMP_NOT_EQUAL_IMMEDIATE | JUMP_NOT_EQUAL_REGISTER => {}
                EXIT => return registers[0] != 0,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn docker_rules_decide_as_the_v1_list() {
        let rules: Vec<_> = docker_device_rules().iter().map(|rule| DeviceRule::from_oci(rule).unwrap()).collect();
        let program = compile(&rules);
        assert!(run(&program, READ | WRITE, TYPE_CHAR, 1, 3));
        assert!(run(&program, READ, TYPE_CHAR, 136, 77));
        assert!(run(&program, MKNOD, TYPE_BLOCK, 8, 0), "nodes may be made");
        assert!(!run(&program, READ, TYPE_BLOCK, 8, 0), "but not opened");
        assert!(!run(&program, READ | MKNOD, TYPE_BLOCK, 8, 0));
        assert!(!run(&program, READ, TYPE_CHAR, 1, 1), "/dev/mem");
        assert!(!run(&program, READ, TYPE_CHAR, 10, 229), "/dev/fuse");
    }

    #[test]
    fn the_last_rule_wins() {
        let all = DeviceRule { allow: true, kind: DeviceKind::Any, major: None, minor: None, access: 7 };
        let no_write = DeviceRule { allow: false, kind: DeviceKind::Char, major: Some(1), minor: None, access: WRITE };
        let program = compile(&[all, no_write]);
        assert!(run(&program, READ, TYPE_CHAR, 1, 3));
        assert!(!run(&program, READ | WRITE, TYPE_CHAR, 1, 3));
        assert!(run(&program, WRITE, TYPE_BLOCK, 1, 3));
        let program = compile(&[no_write, all]);
        assert!(run(&program, WRITE, TYPE_CHAR, 1, 3));
        assert!(!run(&compile(&[]), READ, TYPE_CHAR, 1, 3));
    }
}
