//! Step 8: the proof of a PROOF token, which shows that the token's holder has just created this packet, and the replay
//! window, which shows that the packet is new.

use lb_common::{
    control::SECOND_NS,
    reason::{Reason, ReasonCode},
    scratch::PacketMetadata,
    session::{ReplayWord, StatefulEntry, is_behind},
    siphash::SipKey,
    token::{
        Header,
        header::{self, PROOF_WINDOW_NS},
        tags,
    },
};

use crate::{
    admit,
    clock::Now,
    packet::{Cursor, Frame},
    shared::{Shared, field},
    verifier::{PAYLOAD_WORD_AT_MASK, opaque},
};

/// The maximum number of attempts to change a word of the replay window. Each failure means that another of the word's
/// 32 packets was faster.
const TRIES: u32 = 32;

/// Checks the proof of a packet, and marks its sequence number as seen.
#[inline(always)]
pub fn check(
    frame: &Frame,
    token: Cursor,
    header: &Header,
    packet: &PacketMetadata,
    now: Now,
    entry: Shared<StatefulEntry>,
) -> Result<(), ReasonCode> {
    let [seq_and_ts, tag] = header.full_tag();
    let (seq, ts_ms) = ((seq_and_ts as u32).swap_bytes(), ((seq_and_ts >> 32) as u32).swap_bytes());
    let made_ns = u64::from(header.issued_at()) * SECOND_NS + u64::from(ts_ms) * (SECOND_NS / 1000);
    if made_ns > now.unix_ns + PROOF_WINDOW_NS || now.unix_ns > made_ns + PROOF_WINDOW_NS {
        return Err(Reason::StaleProof.into());
    }
    let payload = first_words(frame, token, packet.payload_len).ok_or(Reason::Unsupported)?;
    let key = SipKey { k0: field!(entry, proof_key.k0).read(), k1: field!(entry, proof_key.k1).read() };
    if tags::proof(key, seq_and_ts, payload, packet.payload_len as u16) != tag {
        return Err(Reason::BadProof.into());
    }
    if !admit::is_of(field!(entry, session), header) {
        return Err(Reason::Replay.into()); // The entry now belongs to another token: the window is lost.
    }
    first_time(seq, entry)
}

/// Marks a sequence number as seen, if it is not marked yet.
#[inline(always)]
fn first_time(seq: u32, entry: Shared<StatefulEntry>) -> Result<(), ReasonCode> {
    let highest = field!(entry, session.highest);
    let before = highest.read();
    if is_behind(seq, before) {
        return Err(Reason::Replay.into());
    }
    // The index check is for the verifier, which does not know the range of a remainder. Without `opaque`, LLVM would
    // remove the check.
    let word = field!(entry, window).at(opaque(ReplayWord::place(seq))).ok_or(Reason::Internal)?;
    let mut tried = 0;
    loop {
        let found = word.read();
        let marked = ReplayWord(found).mark(seq).ok_or(Reason::Replay)?;
        if word.replace(found, marked.0) {
            break;
        }
        tried += 1;
        if tried == TRIES {
            return Err(Reason::Replay.into());
        }
    }
    // If two CPUs write at the same time, the lower number can remain. The words still mark all numbers that were seen,
    // and the next packet corrects the highest number.
    if seq > before {
        highest.write(seq);
    }
    Ok(())
}

/// The first 16 bytes of the payload after a token, little-endian, with zeros after its last byte.
///
/// If the payload ends within a word, the eight bytes that end with the payload are read, and those of the token before
/// it are shifted out.
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
    let word: u64 = frame.forget_offset::<PAYLOAD_WORD_AT_MASK>(token.skip(end - 8)).read(0)?;
    Some(word >> (((8 - bytes) * 8) & 63))
}
