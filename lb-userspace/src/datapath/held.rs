//! A BPF link of an XDP program, held by its descriptor: the program stays attached as long as this process has it
//! open or a pin exists. The type of aya closes its descriptor if pinning fails, which detaches the program.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};

/// A BPF link, open in this process.
#[derive(Debug)]
pub struct HeldLink(OwnedFd);

/// The target of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTarget {
    /// Id of the attached program.
    pub program_id: u32,
    /// Index of the interface; `None` if it is gone, or the link was detached (BPF_LINK_DETACH).
    pub index: Option<u32>,
}

impl HeldLink {
    /// Opens a pinned link.
    ///
    /// # Errors
    /// If there is no such pin, or this process may not open it.
    pub fn open(pin: &Path) -> io::Result<Self> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut attr = empty_attr();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        // SAFETY: the attributes are those of BPF_OBJ_GET, and the path outlives the call.
        let descriptor = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
        // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Pins the link, which stays open.
    ///
    /// # Errors
    /// If the kernel refuses: the pin exists, or the directory is not on a BPF file system.
    pub fn pin(&self, pin: &Path) -> io::Result<()> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut attr = empty_attr();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        attr.__bindgen_anon_4.bpf_fd = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: the attributes are those of BPF_OBJ_PIN, and path and descriptor outlive the call.
        unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }?;
        Ok(())
    }

    /// The target of the link.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn target(&self) -> io::Result<LinkTarget> {
        // SAFETY: all fields are integers, and every union of them may be zero.
        let mut info: bpf_link_info = unsafe { mem::zeroed() };
        let mut attr = empty_attr();
        attr.info.bpf_fd = self.0.as_raw_fd().cast_unsigned();
        attr.info.info_len = size_of::<bpf_link_info>() as u32;
        attr.info.info = &raw mut info as u64;
        // SAFETY: the attributes are those of BPF_OBJ_GET_INFO_BY_FD; the kernel writes at most `info_len` bytes to
        // `info`, which outlives the call.
        unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
        // SAFETY: every value is a valid integer. The field has another meaning for links of other types, but only XDP
        // links are pinned here.
        let index = unsafe { info.__bindgen_anon_1.xdp.ifindex };
        Ok(LinkTarget { program_id: info.prog_id, index: Some(index).filter(|index| *index != 0) })
    }
}

fn empty_attr() -> bpf_attr {
    // SAFETY: all fields are integers, and every union of them may be zero.
    unsafe { mem::zeroed() }
}

/// bpf(2).
///
/// # Safety
/// The attributes belong to the command, and their pointers are valid for the duration of the call.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: guaranteed by the caller; the size is that of the attributes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attr, size_of::<bpf_attr>()) };
    match RawFd::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
