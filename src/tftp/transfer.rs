//! One file on its way to one client: a sender with a window (RFC 7440), which with a window of one is RFC 1350's.
//!
//! Blocks have 64-bit numbers here and are cut to 16 bits on the wire, so a file of more than 65,535 blocks goes on with
//! block 0. An ACK inside the window means that the client missed what comes after it: the sender goes back to there, at
//! once but not twice within [`NUDGE`], because some clients send such an ACK for every block that they did not expect. An
//! ACK that says again what was known is either an echo or the loss of the window's first block, and nothing tells the two
//! apart but time: it makes the next retransmission early, and progress takes that back. So a lost block costs
//! milliseconds, and a network that doubles packets does not make us send everything again and again (the Sorcerer's
//! Apprentice, RFC 1123 §4.2.3.1). With a window of one such an ACK is always an echo and counts for nothing: there only
//! time tells that a block was lost, so how long this client usually takes is measured, and waited for no longer than need be.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::packet::{self, DEFAULT_BLKSIZE, ErrorCode, Inbound, Options};

/// First retransmission after this, unless the client asked for something else; each further one after twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// A client that was seen to answer fast is sent the next retransmission after this at the earliest: less would be taken up
/// by a boot ROM that writes to flash now and then, or by a server that is busy with hundreds of others.
const QUICKEST_RETRY: Duration = Duration::from_millis(200);
/// ... and after so many times as long as it usually takes.
const USUALS: u32 = 8;
/// Retransmissions are no further apart than this.
const SLOWEST_RETRY: Duration = Duration::from_secs(8);
/// A transfer in which nothing arrives for this long has lost its client.
pub const GIVE_UP: Duration = Duration::from_secs(30);
/// Longest `timeout` that is agreed to: there must be room for three tries before [`GIVE_UP`].
const MAX_TIMEOUT_S: u8 = 10;
/// No window is sent again sooner than this after it was sent. Without progress the next time is twice as long, so that a
/// client that repeats itself cannot make us talk without end.
pub const NUDGE: Duration = Duration::from_millis(20);
/// A first block that was sent so often without an answer is too large for some wire on its way.
const LOST_FIRST: u8 = 3;
/// A transfer sends its file so many times over and no more. A wire that loses every third packet needs three times in the
/// worst window; what needs more is a client that acknowledges the same blocks again and again, or starts anew for ever.
const MAX_TIMES: u64 = 16;
/// What is sent of the smallest file before that counts: a minute of repeated first packets is some kilobytes.
const SLACK: u64 = 1 << 20;
/// A request that comes again while blocks are being acknowledged is an old packet, not a machine that started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What this server agrees to, whatever a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest block: what one frame of the wire holds. Boot ROMs do not reassemble fragments.
    pub blksize: u16,
    /// Most blocks in flight.
    pub window: u16,
    /// Most bytes in flight: what a boot ROM's receive ring and a switch's buffer can be trusted with.
    pub window_bytes: usize,
}

impl Limits {
    /// The same, for a client that did not get larger blocks than those that every wire carries.
    #[must_use]
    pub fn cautious(self) -> Self {
        Self { blksize: DEFAULT_BLKSIZE, ..self }
    }

    /// The limits on a wire with this MTU. 32 bytes go to the headers of IP, UDP and TFTP.
    #[must_use]
    pub fn for_mtu(mtu: u16) -> Self {
        let blksize = mtu.saturating_sub(32).clamp(DEFAULT_BLKSIZE, packet::MAX_BLKSIZE);
        Self { blksize, window: 32, window_bytes: 64 << 10 }
    }

    fn agree(self, asked: Options) -> Options {
        let blksize = asked.blksize.map(|size| size.min(self.blksize));
        let bytes = usize::from(blksize.unwrap_or(DEFAULT_BLKSIZE));
        let fits = u16::try_from(self.window_bytes / bytes).unwrap_or(u16::MAX).min(self.window).max(1);
        Options {
            blksize,
            windowsize: asked.windowsize.map(|window| window.min(fits)),
            timeout: asked.timeout.filter(|seconds| *seconds <= MAX_TIMEOUT_S),
            tsize: asked.tsize,
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send this to the client.
    Send(Vec<u8>),
    /// The transfer is over; nothing more is to be sent.
    End(End),
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The client has the whole file.
    Complete,
    /// The client only wanted to know the size: it asked for it, and stopped before the first block. UEFI firmware does
    /// this before every download.
    SizeProbe,
    /// The client gave up.
    Refused {
        /// The code of its ERROR.
        code: u16,
        /// Its words, printable.
        text: String,
    },
    /// The client fell silent.
    Silent {
        /// How many of the file's blocks it had acknowledged.
        acked: u64,
        /// How many there are.
        blocks: u64,
    },
    /// The client made us send far more than the file has.
    Endless {
        /// How many bytes were sent.
        sent: u64,
    },
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Blocks that the client acknowledged.
    pub acked: u64,
    /// Blocks that there are.
    pub blocks: u64,
    /// Their size in bytes, as agreed.
    pub blksize: u16,
    /// How often something was sent again.
    pub retries: u32,
    /// How often the first block was sent.
    pub first_sent: u8,
}

/// One transfer.
#[derive(Debug)]
pub struct Transfer {
    file: Bytes,
    options: Options,
    blksize: usize,
    window: u64,
    /// Number of the last block; the first is 1. The last one is short, and may be empty.
    blocks: u64,
    /// Blocks up to this are with the client.
    acked: u64,
    /// Blocks up to this were sent.
    sent: u64,
    /// An OACK was sent and waits for its ACK 0.
    offering: bool,
    first_retry: Duration,
    retry: Duration,
    nudge: Duration,
    /// How long the client usually takes to acknowledge, once that is known.
    usual: Option<Duration>,
    /// What was sent last was sent for the first time, so that its ACK tells how long the client takes.
    fresh: bool,
    /// Bytes of blocks that were sent, again and again included.
    spent: u64,
    /// When something was sent last.
    sent_at: Instant,
    /// When the client last confirmed something new.
    progress_at: Instant,
    retry_at: Instant,
    /// When an ACK inside the window last made us go back.
    back_at: Option<Instant>,
    /// How often the first block was sent.
    first_sent: u8,
    retries: u32,
    over: bool,
}

impl Transfer {
    /// Begins to send this file, as far as the client's wishes and our limits agree.
    #[must_use]
    pub fn new(asked: Options, file: Bytes, limits: Limits, now: Instant) -> (Self, Vec<Effect>) {
        let options = limits.agree(asked);
        let blksize = usize::from(options.blksize.unwrap_or(DEFAULT_BLKSIZE));
        let first_retry = options.timeout.map_or(FIRST_RETRY, |seconds| Duration::from_secs(seconds.into()));
        let mut transfer = Self {
            blocks: (file.len() / blksize) as u64 + 1,
            file,
            options,
            blksize,
            window: options.windowsize.unwrap_or(1).into(),
            acked: 0,
            sent: 0,
            offering: !options.is_empty(),
            first_retry,
            retry: first_retry,
            nudge: NUDGE,
            usual: None,
            fresh: false,
            spent: 0,
            sent_at: now,
            progress_at: now,
            retry_at: now,
            back_at: None,
            first_sent: 0,
            retries: 0,
            over: false,
        };
        let effects = transfer.send_window(now);
        (transfer, effects)
    }

    /// A packet from the client.
    pub fn on_packet(&mut self, now: Instant, bytes: &[u8]) -> Vec<Effect> {
        if self.over {
            return Vec::new();
        }
        match packet::parse(bytes) {
            Inbound::Ack(block) => self.on_ack(now, block),
            Inbound::Error { code, text } => {
                let probe = self.offering && self.options.tsize;
                self.end(if probe { End::SizeProbe } else { End::Refused { code, text } })
            }
            // A request belongs to the well-known port, and DATA to whoever is sent a file: not worth a transfer.
            Inbound::Read(_) | Inbound::Write | Inbound::Other => Vec::new(),
        }
    }

    /// The same request from the same address and port: the client did not hear us, or has started again.
    pub fn on_request_again(&mut self, now: Instant) -> Vec<Effect> {
        let begun = self.acked > 0 && now < self.progress_at + RESTART_AFTER;
        if self.over || begun || now < self.sent_at + NUDGE {
            return Vec::new();
        }
        self.acked = 0;
        self.offering = !self.options.is_empty();
        self.progressed(now);
        self.send_again(now)
    }

    /// The time of [`Self::deadline`] has come.
    pub fn on_timeout(&mut self, now: Instant) -> Vec<Effect> {
        if self.over || now < self.deadline() {
            return Vec::new();
        }
        if now >= self.progress_at + GIVE_UP {
            return self.end(End::Silent { acked: self.acked, blocks: self.blocks });
        }
        if self.retry_at < self.sent_at + self.retry {
            return self.send_nudged(now);
        }
        self.retry = (self.retry * 2).min(SLOWEST_RETRY.max(self.first_retry));
        self.send_again(now)
    }

    /// The client agreed to large blocks and then confirmed none, though the first was sent again and again: a tunnel, a
    /// firewall that drops fragments, or a switch with a smaller MTU eats them. The next time it should get small ones.
    #[must_use]
    pub fn loses_large_blocks(&self) -> bool {
        self.acked == 0 && self.first_sent >= LOST_FIRST && self.blksize > usize::from(DEFAULT_BLKSIZE)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let blksize = self.options.blksize.unwrap_or(DEFAULT_BLKSIZE);
        let Self { acked, blocks, retries, first_sent, .. } = *self;
        Progress { acked, blocks, blksize, retries, first_sent }
    }

    /// When [`Self::on_timeout`] wants to be called.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.retry_at.min(self.progress_at + GIVE_UP)
    }

    fn on_ack(&mut self, now: Instant, block: u16) -> Vec<Effect> {
        if self.offering {
            if block != 0 {
                return Vec::new();
            }
            self.offering = false;
            self.progressed(now);
            return self.send_window(now);
        }
        // Windows are far smaller than 65,536 blocks: the distance from the last known block is never ambiguous.
        let ahead = u64::from(block.wrapping_sub(wire(self.acked)));
        if ahead > self.sent - self.acked {
            return Vec::new();
        }
        if ahead == 0 {
            if self.window > 1 {
                self.retry_at = self.retry_at.min(self.sent_at + self.nudge);
            }
            return if now < self.retry_at { Vec::new() } else { self.send_nudged(now) };
        }
        self.acked += ahead;
        self.measure(now);
        self.progressed(now);
        if self.acked == self.blocks {
            return self.end(End::Complete);
        }
        if self.acked < self.sent {
            let next = self.back_at.map_or(now, |back_at| back_at + NUDGE);
            if now < next {
                self.retry_at = next;
                return Vec::new();
            }
            self.back_at = Some(now);
            return self.send_again(now);
        }
        self.send_window(now)
    }

    fn send_nudged(&mut self, now: Instant) -> Vec<Effect> {
        self.nudge *= 2;
        self.send_again(now)
    }

    fn send_again(&mut self, now: Instant) -> Vec<Effect> {
        self.retries = self.retries.saturating_add(1);
        let effects = self.send_window(now);
        self.fresh = false;
        effects
    }

    fn progressed(&mut self, now: Instant) {
        self.progress_at = now;
        self.retry = self.patience();
        self.nudge = NUDGE;
    }

    /// Takes in how long the client took. An ACK of what was sent twice does not tell which of the two it is for (RFC 6298 §3).
    fn measure(&mut self, now: Instant) {
        if self.fresh {
            let took = now.saturating_duration_since(self.sent_at);
            self.usual = Some(self.usual.map_or(took, |usual| (usual * 7 + took) / 8));
        }
    }

    /// How long an answer is waited for. A client that asked for a time gets that one (RFC 2349).
    fn patience(&self) -> Duration {
        match (self.options.timeout, self.usual) {
            (None, Some(usual)) => (usual * USUALS).clamp(QUICKEST_RETRY, FIRST_RETRY),
            _ => self.first_retry,
        }
    }

    /// The OACK, or the window that follows what was acknowledged.
    fn send_window(&mut self, now: Instant) -> Vec<Effect> {
        self.sent_at = now;
        self.retry_at = now + self.retry;
        if self.offering {
            self.sent = 0;
            return vec![Effect::Send(packet::oack(&self.options, self.file.len()))];
        }
        if self.acked == 0 {
            self.first_sent = self.first_sent.saturating_add(1);
        }
        self.fresh = true;
        self.sent = self.blocks.min(self.acked + self.window);
        let start = self.acked.saturating_mul(self.blksize as u64);
        let end = self.sent.saturating_mul(self.blksize as u64).min(self.file.len() as u64);
        self.spent = self.spent.saturating_add(end.saturating_sub(start));
        if self.spent > (self.file.len() as u64).saturating_mul(MAX_TIMES).saturating_add(SLACK) {
            let mut effects = vec![Effect::Send(packet::error(ErrorCode::Undefined, "sent again too often"))];
            effects.extend(self.end(End::Endless { sent: self.spent }));
            return effects;
        }
        (self.acked + 1..=self.sent).map(|block| Effect::Send(packet::data(wire(block), self.payload(block)))).collect()
    }

    fn payload(&self, block: u64) -> &[u8] {
        let start = usize::try_from(block - 1).unwrap_or(usize::MAX).saturating_mul(self.blksize).min(self.file.len());
        let end = start.saturating_add(self.blksize).min(self.file.len());
        &self.file[start..end]
    }

    fn end(&mut self, end: End) -> Vec<Effect> {
        self.over = true;
        vec![Effect::End(end)]
    }
}

/// A block's number on the wire: the low 16 bits, so that after 65,535 comes 0.
#[expect(clippy::cast_possible_truncation, reason = "the wire has 16 bits of it")]
fn wire(block: u64) -> u16 {
    block as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_that_stops_tells_at_which_block_and_how_often_it_tried() {
        let begin = Instant::now();
        let asked = Options { blksize: Some(1_000), ..Options::default() };
        let (mut transfer, _) = Transfer::new(asked, vec![7; 2_500].into(), Limits::for_mtu(1_500), begin);
        transfer.on_packet(begin, &[0, 4, 0, 0]);
        transfer.on_packet(begin, &[0, 4, 0, 1]);
        let progress = Progress { acked: 1, blocks: 3, blksize: 1_000, retries: 0, first_sent: 1 };
        assert_eq!(transfer.progress(), progress);
        let end = loop {
            let effects = transfer.on_timeout(transfer.deadline());
            if let Some(Effect::End(end)) = effects.last() {
                break end.clone();
            }
        };
        assert_eq!(end, End::Silent { acked: 1, blocks: 3 });
        // After 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8 and 8 s; the next would be after the end.
        assert_eq!(transfer.progress(), Progress { retries: 8, ..progress });
    }
}
