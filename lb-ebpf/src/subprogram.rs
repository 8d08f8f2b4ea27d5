//! Global subprograms: functions with their own symbol, which the verifier checks once, independently of their callers.
//!
//! Such a function takes the context and at most four numbers or an entry of a map, and returns a number.
//! [`subprogram!`] creates one from an ordinary function, and a wrapper with the same name that calls it. Only this
//! module encodes arguments and results. Larger values are passed in the scratch.

use lb_common::{control::Tables, reason::ReasonCode};

use crate::shared::Shared;

/// Creates a global subprogram from a function that takes the frame, the mailboxes and the same arguments:
///
/// ```ignore
/// subprogram! {
///     /// Documentation.
///     pub fn name(argument: Type) -> Value = function;
/// }
/// ```
///
/// It is called by `name(frame, mailboxes, argument)`, which returns `Result<Value, ReasonCode>`.
macro_rules! subprogram {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),*) -> $value:ty = $function:path;)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        $vis fn $name(
            frame: &$crate::packet::Frame,
            _lent: &mut $crate::scratch::Mailboxes,
            $($argument: $type),*
        ) -> Result<$value, lb_common::reason::ReasonCode> {
            use $crate::subprogram as convention;
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name(
                ctx: *mut aya_ebpf::bindings::xdp_md,
                $($argument: <$type as convention::Argument>::Number),*
            ) -> u64 {
                $crate::verifier::keep(ctx);
                // SAFETY: the caller has lent its own for the duration of this call.
                let mut mailboxes = unsafe { $crate::scratch::Mailboxes::new() };
                let frame = $crate::packet::Frame::at(ctx);
                $(let $argument = <$type as convention::Argument>::from_number($argument);)*
                convention::encode($function(&frame, &mut mailboxes, $($argument),*))
            }
            convention::decode($name(frame.context(), $(convention::Argument::into_number($argument)),*))
        }
    )+};
}
pub(crate) use subprogram;

/// Bits of the reason in a returned number; the value is above them.
const REASON_BITS: u32 = 8;
const _: () = assert!(lb_common::reason::CAPACITY < 1 << REASON_BITS);

/// Encodes the result of a subprogram as its return code: the code of the reason, or 0 and the value.
#[inline(always)]
pub fn encode<T: Value>(result: Result<T, ReasonCode>) -> u64 {
    match result {
        Ok(value) => value.into_number() << REASON_BITS,
        Err(reason) => reason.number().into(),
    }
}

/// Decodes the return code of a subprogram.
#[inline(always)]
pub fn decode<T: Value>(number: u64) -> Result<T, ReasonCode> {
    match ReasonCode::new(number as u32 & ((1 << REASON_BITS) - 1)) {
        None => Ok(T::from_number(number >> REASON_BITS)),
        Some(reason) => Err(reason),
    }
}

/// The value that a subprogram returns on success.
pub trait Value {
    /// Encodes the value as a number of 56 bits.
    fn into_number(self) -> u64;
    /// Decodes the value.
    fn from_number(number: u64) -> Self;
}

impl Value for () {
    #[inline(always)]
    fn into_number(self) -> u64 {
        0
    }

    #[inline(always)]
    fn from_number(_: u64) -> Self {}
}

impl Value for bool {
    #[inline(always)]
    fn into_number(self) -> u64 {
        self.into()
    }

    #[inline(always)]
    fn from_number(number: u64) -> Self {
        number != 0
    }
}

/// An argument of a subprogram.
pub trait Argument {
    /// The type that the verifier accepts: a number, or a pointer to a map value, which can be null.
    type Number;
    /// Encodes the argument.
    fn into_number(self) -> Self::Number;
    /// Decodes the argument.
    fn from_number(number: Self::Number) -> Self;
}

impl Argument for u32 {
    type Number = Self;

    #[inline(always)]
    fn into_number(self) -> Self {
        self
    }

    #[inline(always)]
    fn from_number(number: Self) -> Self {
        number
    }
}

impl Argument for bool {
    type Number = u32;

    #[inline(always)]
    fn into_number(self) -> u32 {
        self.into()
    }

    #[inline(always)]
    fn from_number(number: u32) -> Self {
        number != 0
    }
}

impl Argument for Tables {
    type Number = u64;

    #[inline(always)]
    fn into_number(self) -> u64 {
        self.to_word()
    }

    #[inline(always)]
    fn from_number(number: u64) -> Self {
        Self::from_word(number)
    }
}

impl<T> Argument for Option<Shared<T>> {
    type Number = *mut T;

    #[inline(always)]
    fn into_number(self) -> *mut T {
        self.map_or(core::ptr::null_mut(), Shared::as_ptr)
    }

    #[inline(always)]
    fn from_number(number: *mut T) -> Self {
        // SAFETY: created by `into_number` in the caller.
        unsafe { Shared::from_pointer(number) }
    }
}
