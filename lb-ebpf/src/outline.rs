//! How functions of their own tell a result. They have a name for the linker, so that the verifier looks at each once,
//! whatever ways packets come to it, and get and return numbers; what they have to say besides is in the scratch.

use lb_common::reason::Reason;

/// A result as such a function returns it.
#[inline(always)]
pub const fn code(result: Result<(), Reason>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => 1 + reason as u32,
    }
}

/// The result again, of a function that fails for no other reasons than these, or `Internal`. No enum is formed of a
/// number that the verifier knows nothing about.
#[inline(always)]
pub fn result<const N: usize>(code: u32, known: [Reason; N]) -> Result<(), Reason> {
    if code == 0 {
        return Ok(());
    }
    let mut at = 0;
    while at < N {
        if code == 1 + known[at] as u32 {
            return Err(known[at]);
        }
        at += 1;
    }
    Err(Reason::Internal)
}
