//! Access to this CPU's scratch: mailboxes between functions that cannot hand each other references.
//!
//! Each function that the verifier looks at by itself (the program, and each subprogram) owns one [`Mailboxes`], and so
//! can open the scratch once at a time. To call a subprogram it lends its own for the time of the call.

use lb_common::{
    reason::{Reason, ReasonCode},
    scratch::Scratch,
};

use crate::maps::SCRATCH;

/// The right to use this CPU's scratch. It takes no space: the scratch is looked up where it is needed, for most
/// packets do without.
pub struct Mailboxes(());

impl Mailboxes {
    /// For a program or a subprogram.
    ///
    /// # Safety
    /// There is one in each function that the verifier looks at by itself, and the caller of a subprogram does not
    /// use its own during the call.
    #[inline(always)]
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// The scratch.
    ///
    /// # Errors
    /// None in fact: the map has one value. The verifier does not know that.
    #[inline(always)]
    pub fn open(&mut self) -> Result<&mut Scratch, ReasonCode> {
        let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
        // SAFETY: this CPU's own value: no other run of the program interrupts this one on the same CPU. It is borrowed
        // for as long as the only `Mailboxes` in use.
        Ok(unsafe { &mut *scratch })
    }
}
