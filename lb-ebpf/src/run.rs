//! One run of the program, on one packet.

use aya_ebpf::programs::XdpContext;
use lb_common::control::{ControlPage, Tables};

use crate::{
    maps::CONTROL,
    packet::Frame,
    scratch::Mailboxes,
    shared::{Shared, field},
};

/// The values that every step needs. All steps are inlined, so its fields are registers.
pub struct Run {
    /// The received frame.
    pub frame: Frame,
    /// The clock and the revocations.
    pub control: Shared<ControlPage>,
    /// The tables that apply to the packet.
    pub tables: Tables,
    /// This CPU's scratch.
    pub mailboxes: Mailboxes,
}

impl Run {
    /// Begins a run.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Option<Self> {
        let control = Shared::value(&CONTROL)?;
        let tables = Tables::from_word(field!(control, tables).read());
        // SAFETY: the program creates only one.
        Some(Self { frame: Frame::of(ctx), control, tables, mailboxes: unsafe { Mailboxes::new() } })
    }
}
