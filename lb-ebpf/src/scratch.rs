//! Access to this CPU's scratch: mailboxes between functions that cannot pass references to each other.
//!
//! Each function that the verifier checks separately (the program, and each subprogram) owns one [`Mailboxes`], so it
//! can borrow the scratch only once at a time. To call a subprogram, it lends its own for the duration of the call.

use lb_common::{
    reason::{Reason, ReasonCode},
    scratch::Scratch,
};

use crate::maps::SCRATCH;

/// The right to use this CPU's scratch. It has no size: the scratch is looked up only where it is needed, because most
/// packets do not need it.
pub struct Mailboxes(());

impl Mailboxes {
    /// For a program or a subprogram.
    ///
    /// # Safety
    /// Each function that the verifier checks separately creates only one, and the caller of a subprogram does not use
    /// its own during the call.
    #[inline(always)]
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// The scratch.
    ///
    /// # Errors
    /// Never fails, because the map has one value. The verifier does not know that.
    #[inline(always)]
    pub fn open(&mut self) -> Result<&mut Scratch, ReasonCode> {
        let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
        // SAFETY: this CPU's own value: no other run of the program interrupts this one on the same CPU. It is borrowed
        // for as long as the only `Mailboxes` in use.
        Ok(unsafe { &mut *scratch })
    }
}
