//! A link whose frames are all in one VLAN that the hosts at its ends do not know. It works on kernels without VLAN
//! interfaces: two programs at each end push the tag on egress and pop it on ingress. They drop frames with another tag
//! or without a tag.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::{errno::Errno, libc};

use crate::testbed::netns::{Namespace, run};

/// The VLAN.
const ID: i32 = 100;
/// 802.1Q as its wire bytes are in memory.
const IDENTIFIER_BE: i32 = 0x8100_u16.to_be() as i32;

/// An instruction of the kernel's virtual machine.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination, and source in the upper half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const LOAD_WORD: u8 = 0x61;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The helpers `bpf_skb_vlan_push` and `bpf_skb_vlan_pop`.
const PUSH_TAG: i32 = 18;
const POP_TAG: i32 = 19;
/// Offsets in `struct __sk_buff`.
const VLAN_PRESENT: i16 = 20;
const VLAN_CONTROL: i16 = 24;
/// `TC_ACT_OK` and `TC_ACT_SHOT`.
const PASS: i32 = 0;
const DROP: i32 = 2;

/// Pushes the tag on egress.
const PUSH: [Instruction; 5] = [
    instruction(MOVE, 2, 0, IDENTIFIER_BE),
    instruction(MOVE, 3, 0, ID),
    instruction(CALL, 0, 0, PUSH_TAG),
    instruction(MOVE, 0, 0, PASS),
    instruction(EXIT, 0, 0, 0),
];

/// Pops the tag on ingress.
const POP: [Instruction; 9] = [
    instruction(MOVE, 0, 0, DROP),
    instruction(LOAD_WORD, 0x12, VLAN_PRESENT, 0),
    instruction(JUMP_IF_EQUAL, 2, 5, 0),
    instruction(LOAD_WORD, 0x12, VLAN_CONTROL, 0),
    instruction(AND, 2, 0, 0xfff),
    instruction(JUMP_UNLESS_EQUAL, 2, 2, ID),
    instruction(CALL, 0, 0, POP_TAG),
    instruction(MOVE, 0, 0, PASS),
    instruction(EXIT, 0, 0, 0),
];

/// The programs, loaded as long as this value lives; attached programs stay.
pub struct Tagger {
    push: OwnedFd,
    pop: OwnedFd,
}

impl Tagger {
    /// Loads the programs.
    ///
    /// # Errors
    /// If the kernel refuses them.
    pub fn new() -> Result<Self> {
        Ok(Self { push: load(&PUSH)?, pop: load(&POP)? })
    }

    /// Attaches the programs to one end of a link. `pin` is a path for temporary use.
    ///
    /// # Errors
    /// If `tc` fails.
    pub fn attach(&self, namespace: &Namespace, interface: &str, pin: &Path) -> Result<()> {
        // Tags are written into the frame, where XDP sees them.
        run(namespace.command("ethtool")?.args(["-K", interface, "txvlan", "off"]))?;
        run(namespace.command("tc")?.args(["qdisc", "add", "dev", interface, "clsact"]))?;
        for (direction, program) in [("ingress", &self.pop), ("egress", &self.push)] {
            pin_at(program, pin)?;
            let mut tc = namespace.command("tc")?;
            tc.args(["filter", "add", "dev", interface, direction, "bpf", "direct-action", "object-pinned"]);
            let attached = run(tc.arg(pin));
            std::fs::remove_file(pin)?;
            attached?;
        }
        Ok(())
    }
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    at: u64,
    license: u64,
    log_level: u32,
    log_len: u32,
    log: u64,
}

fn load(program: &[Instruction]) -> Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let mut log = vec![0_u8; 4096];
    let attributes = Load {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        instructions: u32::try_from(program.len())?,
        at: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 1,
        log_len: u32::try_from(log.len())?,
        log: log.as_mut_ptr() as u64,
    };
    // SAFETY: everything that the attributes point to outlives the call and has the given lengths.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &attributes) };
    let fd = fd.with_context(|| format!("cannot load: {}", String::from_utf8_lossy(&log)))?;
    // SAFETY: the kernel has just created it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The part of `union bpf_attr` that `BPF_OBJ_PIN` reads.
#[repr(C)]
struct Pin {
    path: u64,
    program: u32,
    flags: u32,
}

fn pin_at(program: &OwnedFd, path: &Path) -> Result<()> {
    const BPF_OBJ_PIN: libc::c_int = 6;
    let text = CString::new(path.as_os_str().as_encoded_bytes())?;
    let attributes = Pin { path: text.as_ptr() as u64, program: program.as_raw_fd().try_into()?, flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &attributes) }.with_context(|| format!("cannot pin {}", path.display()))?;
    Ok(())
}

/// # Safety
/// The attributes belong to the command.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads the number of bytes that it is given.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    Ok(Errno::result(result as libc::c_int)?)
}
