//! Registrations and persistent reservations on the wire: the parameter list of PERSISTENT RESERVE OUT (SPC-4 §6.16.3), the
//! parameter data of PERSISTENT RESERVE IN (§6.15), and the text by which they outlive a loss of power.

use std::fmt::Write as _;

use super::reservation::{Held, InitiatorPort, Kind, MAX_REGISTRATIONS, Registration, Reservations, action};
use super::sense::Sense;

/// Longest parameter list: REGISTER AND MOVE with the longest iSCSI name (223 bytes) and its ISID.
pub const MAX_PARAMETERS: u32 = 24 + 256;

/// Length of every other parameter list.
const BASIC: usize = 24;

/// The protocol identifier of iSCSI (SPC-4 §7.6.1).
const ISCSI: u8 = 0x05;

/// The only target port's relative identifier.
const PORT: u16 = 1;

/// What separates the name and the ISID of an initiator port (RFC 7143 §4.2.7.1: `name,i,0xISID`).
const ISID_MARK: &str = ",i,0x";

/// A parameter list of PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// RESERVATION KEY.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub service_key: u64,
    /// APTPL: what is registered is to outlive a loss of power.
    pub keep: bool,
    /// UNREG: of REGISTER AND MOVE.
    pub unregister: bool,
    /// Where REGISTER AND MOVE goes to.
    pub moves_to: Option<InitiatorPort>,
}

impl Parameters {
    /// Reads the list of this service action.
    ///
    /// # Errors
    /// PARAMETER LIST LENGTH ERROR, INVALID FIELD IN PARAMETER LIST.
    pub fn parse(service: u8, list: &[u8]) -> Result<Self, Sense> {
        let (Some((key, rest)), moves) = (list.split_first_chunk::<8>(), service == action::REGISTER_AND_MOVE) else {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        };
        let Some((service_key, rest)) = rest.split_first_chunk::<8>() else {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        };
        let keys =
            Self { key: u64::from_be_bytes(*key), service_key: u64::from_be_bytes(*service_key), ..Self::default() };
        if moves {
            return keys.with_destination(rest);
        }
        if list.len() != BASIC {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        /// SPEC_I_PT: register other ports, which is not offered. (ALL_TG_PT says nothing where there is one target port.)
        const SPEC_I_PT: u8 = 0x08;
        const APTPL: u8 = 0x01;
        let registers = [action::REGISTER, action::REGISTER_AND_IGNORE].contains(&service);
        if registers && rest[4] & SPEC_I_PT != 0 {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        Ok(Self { keep: rest[4] & APTPL != 0, ..keys })
    }

    /// The rest of REGISTER AND MOVE's list (SPC-4 §6.16.4).
    fn with_destination(self, rest: &[u8]) -> Result<Self, Sense> {
        let Some((head, id)) = rest.split_first_chunk::<8>() else { return Err(Sense::PARAMETER_LIST_LENGTH) };
        let (flags, port) = (head[1], u16::from_be_bytes([head[2], head[3]]));
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        if usize::try_from(length).ok() != Some(id.len()) {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        if port != PORT {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        let moves_to = Some(parse_transport_id(id).ok_or(Sense::INVALID_FIELD_IN_PARAMETERS)?);
        Ok(Self { keep: flags & 0x01 != 0, unregister: flags & 0x02 != 0, moves_to, ..self })
    }
}

/// A TransportID of an initiator port, format 01b (SPC-4 §7.6.4.6).
fn parse_transport_id(id: &[u8]) -> Option<InitiatorPort> {
    let (head, name) = id.split_first_chunk::<4>()?;
    if head[0] != 0x40 | ISCSI || usize::from(u16::from_be_bytes([head[2], head[3]])) != name.len() {
        return None;
    }
    let end = name.iter().position(|byte| *byte == 0)?;
    parse_port(std::str::from_utf8(&name[..end]).ok()?)
}

fn parse_port(text: &str) -> Option<InitiatorPort> {
    let (name, isid) = text.split_once(ISID_MARK)?;
    let isid = (isid.len() == 12).then(|| u64::from_str_radix(isid, 16).ok()).flatten()?;
    let [0, 0, isid @ ..] = isid.to_be_bytes() else { return None };
    let plain = !name.is_empty() && name.len() <= 223 && !name.contains(|c: char| c.is_whitespace() || c.is_control());
    plain.then(|| InitiatorPort { name: name.to_ascii_lowercase(), isid })
}

fn port_text(port: &InitiatorPort) -> String {
    let isid = port.isid.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("{}{ISID_MARK}{isid}", port.name)
}

fn transport_id(port: &InitiatorPort) -> Vec<u8> {
    let mut name = port_text(port).into_bytes();
    name.push(0);
    name.resize(name.len().next_multiple_of(4).max(20), 0);
    let length = u16::try_from(name.len()).expect("an iSCSI name has at most 223 bytes");
    let mut id = vec![0x40 | ISCSI, 0];
    id.extend_from_slice(&length.to_be_bytes());
    id.extend(name);
    id
}

/// PERSISTENT RESERVE IN data of a service action.
///
/// # Errors
/// INVALID FIELD IN CDB for one that there is not.
pub fn report(reservations: &Reservations, service: u8) -> Result<Vec<u8>, Sense> {
    let body = match service {
        0 => reservations.registrations.iter().flat_map(|registration| registration.key.to_be_bytes()).collect(),
        1 => reservations.held.as_ref().map_or(Vec::new(), |held| reservation(reservations, held)),
        2 => return Ok(capabilities(reservations.kept)),
        3 => full_status(reservations),
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let mut data = reservations.generation.to_be_bytes().to_vec();
    data.extend_from_slice(&u32::try_from(body.len()).expect("registrations are bounded").to_be_bytes());
    data.extend(body);
    Ok(data)
}

/// READ RESERVATION (SPC-4 §6.15.3). Where all registrants hold it, there is no holder's key.
fn reservation(reservations: &Reservations, held: &Held) -> Vec<u8> {
    let key = if held.kind.held_by_all() { 0 } else { reservations.key_of(&held.by).unwrap_or(0) };
    let mut data = key.to_be_bytes().to_vec();
    data.extend_from_slice(&[0, 0, 0, 0, 0, held.kind as u8, 0, 0]);
    data
}

/// REPORT CAPABILITIES (SPC-4 §6.15.4).
fn capabilities(kept: bool) -> Vec<u8> {
    /// ATP_C, PTPL_C: ALL_TG_PT and APTPL are understood.
    const CAPABLE: u8 = 0x04 | 0x01;
    /// TMV, and ALLOW COMMANDS 001b: what is not in the table of the standard is as the table of this unit says.
    const TYPES_VALID: u8 = 0x80;
    let mask = Kind::ALL.into_iter().fold(0_u16, |mask, kind| {
        // The mask's first byte has the types up to 7, its second has type 8 in bit 0.
        mask | if (kind as u8) < 8 { 0x0100 << (kind as u8) } else { 0x0001 }
    });
    let [low, high] = mask.to_be_bytes();
    vec![0, 8, CAPABLE, TYPES_VALID | u8::from(kept), low, high, 0, 0]
}

/// READ FULL STATUS (SPC-4 §6.15.5).
fn full_status(reservations: &Reservations) -> Vec<u8> {
    let mut data = Vec::new();
    for Registration { port, key } in &reservations.registrations {
        /// ALL_TG_PT is 0; R_HOLDER.
        const HOLDER: u8 = 0x01;
        let (holds, kind) = match &reservations.held {
            Some(held) if reservations.holds(port) => (HOLDER, held.kind as u8),
            _ => (0, 0),
        };
        let id = transport_id(port);
        data.extend_from_slice(&key.to_be_bytes());
        data.extend_from_slice(&[0, 0, 0, 0, holds, kind, 0, 0, 0, 0]);
        data.extend_from_slice(&PORT.to_be_bytes());
        data.extend_from_slice(&u32::try_from(id.len()).expect("an iSCSI name has at most 223 bytes").to_be_bytes());
        data.extend(id);
    }
    data
}

/// The first line of the text.
const TITLE: &str = "persistent reservations 1";

impl Reservations {
    /// What must outlive a loss of power, as lines of text; `None`: nothing must.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        if !self.kept || self.registrations.is_empty() {
            return None;
        }
        let mut text = format!("{TITLE}\n");
        for registration in &self.registrations {
            let _ = writeln!(text, "key {:016x} {}", registration.key, port_text(&registration.port));
        }
        if let Some(held) = &self.held {
            let _ = writeln!(text, "held {} {}", held.kind as u8, port_text(&held.by));
        }
        Some(text)
    }

    /// Reads such a text. The generation begins anew (SPC-4 §5.13.5).
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return None;
        }
        let mut found = Self { kept: true, ..Self::default() };
        for line in lines {
            let (what, rest) = line.split_once(' ')?;
            let (value, port) = rest.split_once(' ')?;
            let port = parse_port(port)?;
            match what {
                "key" if found.registrations.len() < MAX_REGISTRATIONS && found.key_of(&port).is_none() => {
                    let key = u64::from_str_radix(value, 16).ok().filter(|key| *key != 0)?;
                    found.registrations.push(Registration { port, key });
                }
                "held" if found.held.is_none() => {
                    let kind = Kind::of_code(value.parse().ok()?)?;
                    found.held = Some(Held { kind, by: port });
                }
                _ => return None,
            }
        }
        let sound = found.held.as_ref().is_none_or(|held| held.kind.held_by_all() || found.key_of(&held.by).is_some());
        (sound && !found.registrations.is_empty()).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u8) -> InitiatorPort {
        InitiatorPort {
            name: format!("iqn.2026-11.internal.roost:client.pc-{number:02}"),
            isid: [0, 2, 61, 0, 0, number],
        }
    }

    fn reserved() -> Reservations {
        let registrations =
            vec![Registration { port: port(1), key: 0x1122_3344_5566_7788 }, Registration { port: port(2), key: 0x99 }];
        let held = Some(Held { kind: Kind::WriteExclusiveRegistrantsOnly, by: port(2) });
        Reservations { generation: 7, registrations, held, kept: true, ..Reservations::default() }
    }

    #[test]
    fn keys_and_the_reservation_are_told_byte_by_byte() {
        let keys = [0, 0, 0, 7, 0, 0, 0, 16, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 0, 0, 0, 0, 0x99];
        assert_eq!(report(&reserved(), 0).unwrap(), keys);
        let one = [0, 0, 0, 7, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0x99, 0, 0, 0, 0, 0, 5, 0, 0];
        assert_eq!(report(&reserved(), 1).unwrap(), one);
        assert_eq!(report(&Reservations::default(), 1).unwrap(), [0; 8]);
        assert_eq!(report(&reserved(), 2).unwrap(), [0, 8, 0x05, 0x81, 0xEA, 0x01, 0, 0]);
        assert_eq!(report(&reserved(), 4), Err(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn full_status_names_every_port_and_who_holds() {
        let data = report(&reserved(), 3).unwrap();
        let id = transport_id(&port(1));
        assert_eq!(id[..4], [0x45, 0, 0, u8::try_from(id.len() - 4).unwrap()]);
        assert!(id.len().is_multiple_of(4));
        let each = 24 + id.len();
        assert_eq!(data.len(), 8 + 2 * each);
        assert_eq!(data[8 + 12..8 + 14], [0, 0], "the first does not hold it");
        assert_eq!(data[8 + each + 12..8 + each + 14], [1, 5], "the second does");
        assert_eq!(data[8 + 18..8 + 20], [0, 1], "the target port");
        assert_eq!(parse_transport_id(&id), Some(port(1)));
    }

    #[test]
    fn a_parameter_list_has_its_exact_length() {
        let mut list = vec![0; 24];
        (list[7], list[15], list[20]) = (1, 2, 1);
        let read = Parameters::parse(action::REGISTER, &list).unwrap();
        assert_eq!((read.key, read.service_key, read.keep), (1, 2, true));
        for length in [0, 7, 15, 23, 25] {
            list.resize(length, 0);
            assert_eq!(Parameters::parse(action::REGISTER, &list), Err(Sense::PARAMETER_LIST_LENGTH), "{length}");
        }
        let mut others = vec![0; 24];
        others[20] = 0x08;
        assert_eq!(Parameters::parse(action::REGISTER, &others), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
        assert!(Parameters::parse(action::RESERVE, &others).is_ok(), "the bit is of registrations alone");
    }

    #[test]
    fn a_move_names_its_destination() {
        let id = transport_id(&port(3));
        let mut list = vec![0; 16];
        (list[7], list[15]) = (1, 2);
        list.extend_from_slice(&[0, 0x03, 0, 1, 0, 0, 0, u8::try_from(id.len()).unwrap()]);
        list.extend(&id);
        let read = Parameters::parse(action::REGISTER_AND_MOVE, &list).unwrap();
        assert_eq!((read.moves_to, read.unregister, read.keep), (Some(port(3)), true, true));
        for cut in 0..list.len() {
            let refused = Parameters::parse(action::REGISTER_AND_MOVE, &list[..cut]);
            assert_eq!(refused, Err(Sense::PARAMETER_LIST_LENGTH), "{cut}");
        }
        list[19] = 2;
        assert_eq!(Parameters::parse(action::REGISTER_AND_MOVE, &list), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
    }

    #[test]
    fn the_text_brings_back_all_but_the_generation() {
        let text = reserved().to_text().unwrap();
        assert_eq!(Reservations::from_text(&text), Some(Reservations { generation: 0, ..reserved() }));
        assert_eq!(Reservations { kept: false, ..reserved() }.to_text(), None);
        for bad in ["", "persistent reservations 1\n", "persistent reservations 1\nkey 0 a,i,0x000000000001\n"] {
            assert_eq!(Reservations::from_text(bad), None, "{bad}");
        }
        let (without_key, _) = text.split_once("key 0000000000000099").unwrap();
        let orphan = format!("{without_key}held 5 {}\n", port_text(&port(2)));
        assert_eq!(Reservations::from_text(&orphan), None, "a holder without a key");
    }
}
