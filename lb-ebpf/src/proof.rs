//! Step 8: a PROOF token's proof that its holder made this very packet, just now, and never before.

use lb_common::{
    live::SECOND_NS,
    reason::Reason,
    scratch::Arrival,
    session::{REPLAY_WORDS, ReplayWord, TrackedSession, is_behind},
    siphash::SipKey,
    token::{
        Header,
        header::{self, PROOF_WINDOW_NS},
        tags,
    },
};

use crate::{
    admit, atomic,
    clock::Now,
    packet::{Cursor, Frame, opaque},
};

/// How often a word of the replay window is tried to be changed. Whoever fails was overtaken by another packet of the same
/// 32, all of which it can happen to.
const TRIES: u32 = 32;

/// Covers where a word of the payload may begin: behind at most 70 bytes and the token.
const WORD_AT_MASK: usize = 0xff;

/// Checks the proof of a packet, and marks its number as seen.
#[inline(always)]
pub fn check(
    frame: &Frame,
    token: Cursor,
    header: &Header,
    arrival: &Arrival,
    now: Now,
    entry: *mut TrackedSession,
) -> Result<(), Reason> {
    let [seq_and_ts, tag] = header.full_tag();
    let (seq, ts_ms) = ((seq_and_ts as u32).swap_bytes(), ((seq_and_ts >> 32) as u32).swap_bytes());
    let made_ns = u64::from(header.issued_at()) * SECOND_NS + u64::from(ts_ms) * (SECOND_NS / 1000);
    if made_ns > now.unix_ns + PROOF_WINDOW_NS || now.unix_ns > made_ns + PROOF_WINDOW_NS {
        return Err(Reason::StaleProof);
    }
    let payload = first_words(frame, token, arrival.payload_len).ok_or(Reason::Unsupported)?;
    // SAFETY: as in `tracked::settled`.
    let key = unsafe {
        let key = &raw const (*entry).proof_key;
        SipKey { k0: (&raw const (*key).k0).read_volatile(), k1: (&raw const (*key).k1).read_volatile() }
    };
    if tags::proof(key, seq_and_ts, payload, arrival.payload_len as u16) != tag {
        return Err(Reason::BadProof);
    }
    if !admit::is_of(entry.cast(), header) {
        return Err(Reason::Replay); // It was given to another token: nobody can tell any more.
    }
    first_time(seq, entry)
}

/// Whether no packet with this number has come before. It has from now on.
#[inline(always)]
fn first_time(seq: u32, entry: *mut TrackedSession) -> Result<(), Reason> {
    // SAFETY: as in `tracked::settled`; the place is within the window.
    unsafe {
        let highest = (&raw const (*entry).session.highest).read_volatile();
        if is_behind(seq, highest) {
            return Err(Reason::Replay);
        }
        let place = opaque(ReplayWord::place(seq));
        if place >= REPLAY_WORDS {
            return Err(Reason::Internal); // Which the verifier cannot tell from a remainder.
        }
        let word = (&raw mut (*entry).window).cast::<u64>().add(place);
        let mut tried = 0;
        loop {
            let found = word.read_volatile();
            let marked = ReplayWord(found).mark(seq).ok_or(Reason::Replay)?;
            if atomic::replace_u64(word, found, marked.0) {
                break;
            }
            tried += 1;
            if tried == TRIES {
                return Err(Reason::Replay);
            }
        }
        // Two at once may leave the lower one: the words still tell what was seen, and the next packet mends it.
        if seq > highest {
            (&raw mut (*entry).session.highest).write_volatile(seq);
        }
    }
    Ok(())
}

/// The first 16 bytes of the payload behind a token, little-endian, with zeros behind its last.
///
/// Of a payload that ends within a word, the eight bytes are read that end with it: those before are the token's, and are
/// shifted out.
#[inline(always)]
fn first_words(frame: &Frame, token: Cursor, len: u32) -> Option<[u64; 2]> {
    Some([word_of(frame, token, 0, len)?, word_of(frame, token, 8, len)?])
}

#[inline(always)]
fn word_of(frame: &Frame, token: Cursor, from: u32, len: u32) -> Option<u64> {
    let bytes = if len > from + 8 { 8 } else { len.saturating_sub(from) } as usize & 0xf;
    if bytes == 0 {
        return Some(0);
    }
    let end = header::LEN + from as usize + bytes;
    let word: u64 = frame.somewhere::<WORD_AT_MASK>(token.skip(end - 8)).read(0)?;
    Some(word >> (((8 - bytes) * 8) & 63))
}
