//! Text requests of the full feature phase, each of which may take several PDUs either way (RFC 7143 §11.10, §11.11).

use super::*;
use crate::iscsi::MAX_TEXT;

/// A text request that is not answered whole. There is one at a time.
#[derive(Debug)]
pub(super) struct Exchange {
    itt: u32,
    /// The tag by which the initiator goes on.
    ttt: u32,
    /// What it has said so far, while more of it is to come.
    asked: Vec<u8>,
    /// What is still to be said to it.
    rest: Vec<u8>,
    /// F of its last request: it has nothing to add.
    last: bool,
    /// The answer is being looked for ([`Effect::SendTargets`]).
    waits: bool,
}

impl Session {
    pub(super) fn text(&mut self, pdu: &Pdu) {
        let header = pdu.header;
        let (itt, ttt) = (header.itt(), header.word(20));
        let goes_on = header.flags() & CONTINUE != 0;
        let mut exchange = if ttt == NO_TAG {
            // A new request takes the place of one that was not finished, unless its answer is on its way.
            if self.exchange.as_ref().is_some_and(|exchange| exchange.waits) {
                return self.reject(&header, reject::PROTOCOL_ERROR);
            }
            Exchange { itt, ttt, asked: Vec::new(), rest: Vec::new(), last: false, waits: false }
        } else {
            let known = |exchange: &mut Exchange| exchange.ttt == ttt && exchange.itt == itt && !exchange.waits;
            let Some(exchange) = self.exchange.take_if(known) else {
                return self.reject(&header, reject::PROTOCOL_ERROR);
            };
            exchange
        };
        self.exchange = None;
        let sound = pdu.data.len() <= LOGIN_DATA_SEGMENT as usize
            && exchange.asked.len() + pdu.data.len() <= MAX_TEXT
            && !(goes_on && header.last())
            && (exchange.rest.is_empty() || (pdu.data.is_empty() && !goes_on));
        if !sound {
            return self.reject(&header, reject::PROTOCOL_ERROR);
        }
        exchange.last = header.last();
        if !exchange.rest.is_empty() {
            return self.say(exchange, &[]);
        }
        exchange.asked.extend_from_slice(&pdu.data);
        if goes_on {
            return self.say(exchange, &[]);
        }
        let Ok(keys) = text::parse(&std::mem::take(&mut exchange.asked)) else {
            return self.reject(&header, reject::PROTOCOL_ERROR);
        };
        match self.which(&keys) {
            Some(which) => {
                exchange.waits = true;
                self.exchange = Some(exchange);
                self.effects.push_back(Effect::SendTargets(which));
            }
            None => {
                let reply = text::declared(&keys, &mut self.params);
                self.say(exchange, &reply);
            }
        }
    }

    /// Which targets these keys ask for. "All" is for discovery sessions alone, and "this session's own" for the others
    /// (RFC 7143 appendix C).
    fn which(&self, keys: &text::Keys) -> Option<Which> {
        let value = keys.get("SendTargets")?;
        match (value.as_str(), self.discovery) {
            ("All", true) => Some(Which::All),
            ("All", false) | ("", true) => None,
            (name, _) => Some(Which::One(name.to_owned())),
        }
    }

    /// The answer to [`Effect::SendTargets`]: target names, and the addresses that they are reached at, as `ip:port,group`.
    pub fn targets(&mut self, names: &[String], addresses: &[String]) {
        let Some(mut exchange) = self.exchange.take_if(|exchange| exchange.waits) else { return };
        exchange.waits = false;
        let mut reply = Vec::new();
        for name in names {
            text::push(&mut reply, "TargetName", name);
            for address in addresses {
                text::push(&mut reply, "TargetAddress", address);
            }
        }
        self.say(exchange, &reply);
    }

    /// Sends as much of a text as fits one PDU, and remembers the rest for the initiator to ask for.
    fn say(&mut self, mut exchange: Exchange, text: &[u8]) {
        exchange.rest.extend_from_slice(text);
        let rest = exchange.rest.split_off(self.segment().min(exchange.rest.len()));
        let now = std::mem::replace(&mut exchange.rest, rest);
        let more = !exchange.rest.is_empty();
        // F answers no request that had none: the initiator has more to say.
        let done = !more && exchange.last;
        exchange.ttt = if done { NO_TAG } else { self.new_ttt() };
        let flags = if more { CONTINUE } else { u8::from(done) << 7 };
        let header = Header::new(opcode::TEXT_RESPONSE, flags).with(16, exchange.itt).with(20, exchange.ttt);
        self.send(header, &now);
        self.exchange = (!done).then_some(exchange);
    }
}
