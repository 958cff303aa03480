//! The commands that are supported, as REPORT SUPPORTED OPERATION CODES tells them (SPC-4 §6.35).

use super::command::OpcodeQuery;
use super::sense::Sense;

/// One supported command.
struct Supported {
    /// Its CDB usage data: the operation code, then which bits are evaluated. Its length is the CDB's.
    usage: &'static [u8],
    /// Its service action, where it has one.
    action: Option<u16>,
}

const fn plain(usage: &'static [u8]) -> Supported {
    Supported { usage, action: None }
}

const SUPPORTED: [Supported; 26] = [
    plain(&[0x00, 0, 0, 0, 0, 0]),
    plain(&[0x03, 0x01, 0, 0, 0xFF, 0]),
    plain(&[0x08, 0x1F, 0xFF, 0xFF, 0xFF, 0]),
    plain(&[0x0A, 0x1F, 0xFF, 0xFF, 0xFF, 0]),
    plain(&[0x12, 0x01, 0xFF, 0xFF, 0xFF, 0]),
    plain(&[0x1A, 0x08, 0xFF, 0xFF, 0xFF, 0]),
    plain(&[0x1B, 0, 0, 0, 0x02, 0]),
    plain(&[0x25, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x01, 0]),
    plain(&[0x28, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    plain(&[0x2A, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    plain(&[0x2F, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    plain(&[0x35, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    plain(&[0x41, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    plain(&[0x42, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    plain(&[0x5A, 0x08, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0]),
    plain(&[0x88, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    plain(&[0x8A, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    plain(&[0x8F, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    plain(&[0x91, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    plain(&[0x93, 0xF9, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    Supported { usage: &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], action: Some(0x10) },
    plain(&[0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    Supported { usage: &[0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], action: Some(0x0C) },
    plain(&[0xA8, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    plain(&[0xAA, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    plain(&[0xAF, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
];

/// Command timeouts descriptor (SPC-4 §6.35.4): its length field, and no timeouts named.
const TIMEOUTS: [u8; 12] = [0x00, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The parameter data that answers a query.
///
/// # Errors
/// INVALID FIELD IN CDB where the query names a service action for a command that has none, or the reverse.
pub fn report(query: OpcodeQuery, timeouts: bool) -> Result<Vec<u8>, Sense> {
    let (opcode, action) = match query {
        OpcodeQuery::All => return Ok(all(timeouts)),
        OpcodeQuery::Opcode(opcode) => {
            if SUPPORTED.iter().any(|c| c.usage[0] == opcode && c.action.is_some()) {
                return Err(Sense::INVALID_FIELD_IN_CDB);
            }
            (opcode, None)
        }
        OpcodeQuery::Action(opcode, action) => {
            if SUPPORTED.iter().any(|c| c.usage[0] == opcode && c.action.is_none()) {
                return Err(Sense::INVALID_FIELD_IN_CDB);
            }
            (opcode, Some(action))
        }
        OpcodeQuery::Either(opcode, action) => {
            let has_actions = SUPPORTED.iter().any(|c| c.usage[0] == opcode && c.action.is_some());
            (opcode, has_actions.then_some(action))
        }
    };
    let Some(command) = SUPPORTED.iter().find(|c| c.usage[0] == opcode && c.action == action) else {
        return Ok(vec![0, 0x01, 0, 0]); // SUPPORT = 001b: not supported
    };
    let mut data = vec![0, 0x03 | u8::from(timeouts) << 7, 0, usage_length(command)];
    data.extend_from_slice(command.usage);
    if timeouts {
        data.extend_from_slice(&TIMEOUTS);
    }
    Ok(data)
}

fn usage_length(command: &Supported) -> u8 {
    u8::try_from(command.usage.len()).expect("a CDB has at most 16 bytes")
}

fn all(timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for command in &SUPPORTED {
        let flags = u8::from(timeouts) << 1 | u8::from(command.action.is_some());
        let [high, low] = command.action.unwrap_or(0).to_be_bytes();
        data.extend_from_slice(&[command.usage[0], 0, high, low, 0, flags, 0, usage_length(command)]);
        if timeouts {
            data.extend_from_slice(&TIMEOUTS);
        }
    }
    let length = u32::try_from(data.len() - 4).expect("the table is small");
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::super::command::{CDB_LENGTH, Command};
    use super::*;

    #[test]
    fn what_is_listed_is_what_is_parsed() {
        for opcode in 0..=0xFF_u8 {
            for action in 0..=0x1F_u8 {
                let mut cdb = [0; CDB_LENGTH];
                cdb[0] = opcode;
                cdb[1] = action;
                let parsed = Command::parse(&cdb) != Err(Sense::INVALID_OPCODE);
                let listed = SUPPORTED
                    .iter()
                    .any(|c| c.usage[0] == opcode && c.action.is_none_or(|listed| listed == u16::from(action)));
                assert_eq!(parsed, listed, "{opcode:02x}/{action:02x}");
            }
        }
    }

    #[test]
    fn one_command_answers_its_usage() {
        let data = report(OpcodeQuery::Opcode(0x12), false).unwrap();
        assert_eq!(data, [0, 3, 0, 6, 0x12, 0x01, 0xFF, 0xFF, 0xFF, 0]);
        assert_eq!(report(OpcodeQuery::Opcode(0xC0), false).unwrap(), [0, 1, 0, 0]);
        assert_eq!(report(OpcodeQuery::Opcode(0xA3), false), Err(Sense::INVALID_FIELD_IN_CDB));
        assert_eq!(report(OpcodeQuery::Action(0x12, 0), false), Err(Sense::INVALID_FIELD_IN_CDB));
    }
}
