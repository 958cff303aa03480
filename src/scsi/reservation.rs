//! Reservations: who registered a key, who holds the unit, and what that forbids the others (SPC-4 §5.13; RESERVE and
//! RELEASE of SPC-2 §5.5.1).
//!
//! A registration belongs to an initiator port (a name and an ISID) and outlives its session; a RESERVE belongs to a
//! session and ends with it. What goes over the wire is in [`registration`](super::registration).

use super::command::Command;
use super::registration::Parameters;
use super::sense::Sense;
use super::unit::Nexus;

/// Registrations on one unit. Sessions on a disk are bounded to 16, but keys outlive them.
pub const MAX_REGISTRATIONS: usize = 64;

/// An initiator port: who registers (RFC 7143 §4.4.2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InitiatorPort {
    /// The initiator's name.
    pub name: String,
    /// Its session ID.
    pub isid: [u8; 6],
}

/// Types of a persistent reservation, by their codes (SPC-4 table 66).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The holder writes, everybody reads.
    WriteExclusive = 1,
    /// The holder reads and writes.
    ExclusiveAccess = 3,
    /// Registrants write, everybody reads.
    WriteExclusiveRegistrantsOnly = 5,
    /// Registrants read and write.
    ExclusiveAccessRegistrantsOnly = 6,
    /// The same as 5, and all registrants hold it.
    WriteExclusiveAllRegistrants = 7,
    /// The same as 6, and all registrants hold it.
    ExclusiveAccessAllRegistrants = 8,
}

impl Kind {
    /// Every type.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type of this code.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Reading is not restricted.
    fn lets_read(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::WriteExclusiveRegistrantsOnly | Self::WriteExclusiveAllRegistrants)
    }

    /// All registrants have access.
    fn shared(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// All registrants hold it.
    #[must_use]
    pub fn held_by_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

/// What a command does to a unit that somebody else reserved (SPC-4 table 62, SBC-3 table 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may always be done.
    Free,
    /// It may be done under a persistent reservation, but not while another has the unit by RESERVE.
    Persistent,
    /// It reads: allowed under the *write exclusive* types.
    Read,
    /// It writes, or changes the unit for others.
    Write,
    /// It judges by itself.
    Reservation,
}

/// The class of a command.
#[must_use]
pub fn access(command: &Command) -> Access {
    match command {
        Command::Inquiry { .. }
        | Command::ReportLuns { .. }
        | Command::RequestSense { .. }
        | Command::LogSense { .. }
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::StartStop { start: true, .. } => Access::Free,
        Command::TestUnitReady => Access::Persistent,
        Command::Reserve | Command::Release | Command::ReserveIn { .. } | Command::ReserveOut(_) => Access::Reservation,
        Command::ModeSense(_)
        | Command::ReportOpcodes { .. }
        | Command::ReportFunctions { .. }
        | Command::Read(_)
        | Command::Verify { .. }
        | Command::Prefetch(_)
        | Command::GetLbaStatus { .. }
        | Command::ReadDefects { .. } => Access::Read,
        Command::ModeSelect { .. }
        | Command::StartStop { start: false, .. }
        | Command::Write { .. }
        | Command::WriteVerify(_)
        | Command::WriteAtomic(_)
        | Command::CompareAndWrite { .. }
        | Command::OrWrite { .. }
        | Command::SynchronizeCache(_)
        | Command::Unmap { .. }
        | Command::WriteSame { .. }
        | Command::BlockErase { .. }
        | Command::ExitFailureMode
        | Command::ExtendedCopy { .. }
        | Command::CopyStatus { .. }
        | Command::CopyParameters { .. } => Access::Write,
    }
}

/// A key that an initiator port registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who.
    pub port: InitiatorPort,
    /// Its key, never 0.
    pub key: u64,
}

/// A persistent reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its type.
    pub kind: Kind,
    /// Who holds it; for the types that all registrants hold, whoever made it, and of no meaning.
    pub by: InitiatorPort,
}

/// Why a reservation command is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Check(Sense),
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// What a change of the reservations brings with it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Consequences {
    /// Ports that are to be told, and what.
    pub attentions: Vec<(InitiatorPort, Sense)>,
    /// Ports whose tasks are to be aborted.
    pub aborted: Vec<InitiatorPort>,
}

/// The reservations of one unit.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reservations {
    /// Counts changes of the registrations.
    pub(super) generation: u32,
    pub(super) registrations: Vec<Registration>,
    pub(super) held: Option<Held>,
    /// They are to outlive a loss of power (APTPL).
    pub(super) kept: bool,
    /// The session that has the unit by RESERVE.
    pub(super) legacy: Option<Nexus>,
}

/// Service actions of PERSISTENT RESERVE OUT (SPC-4 table 205).
pub(super) mod action {
    pub(in super::super) const REGISTER: u8 = 0;
    pub(in super::super) const RESERVE: u8 = 1;
    pub(in super::super) const RELEASE: u8 = 2;
    pub(in super::super) const CLEAR: u8 = 3;
    pub(in super::super) const PREEMPT: u8 = 4;
    pub(in super::super) const PREEMPT_AND_ABORT: u8 = 5;
    pub(in super::super) const REGISTER_AND_IGNORE: u8 = 6;
    pub(in super::super) const REGISTER_AND_MOVE: u8 = 7;
}

impl Reservations {
    /// Whether this port has a key here.
    #[must_use]
    pub fn key_of(&self, port: &InitiatorPort) -> Option<u64> {
        self.registrations.iter().find(|registration| registration.port == *port).map(|registration| registration.key)
    }

    /// Whether this port holds the persistent reservation.
    #[must_use]
    pub fn holds(&self, port: &InitiatorPort) -> bool {
        self.held.as_ref().is_some_and(|held| match held.kind.held_by_all() {
            true => self.key_of(port).is_some(),
            false => held.by == *port,
        })
    }

    /// Nothing is reserved, so every command may go ahead.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.held.is_none() && self.legacy.is_none()
    }

    /// Whether a command of this class may go ahead.
    #[must_use]
    pub fn allow(&self, nexus: Nexus, port: &InitiatorPort, access: Access) -> bool {
        if matches!(access, Access::Free | Access::Reservation) {
            return true;
        }
        if self.legacy.is_some_and(|owner| owner != nexus) {
            return false;
        }
        let Some(held) = &self.held else { return true };
        access == Access::Persistent
            || self.holds(port)
            || (held.kind.shared() && self.key_of(port).is_some())
            || (access == Access::Read && held.kind.lets_read())
    }

    /// RESERVE (SPC-2 §7.21): for this session alone, until it ends. Refused where registrations are in use.
    ///
    /// # Errors
    /// [`Refusal::Conflict`].
    pub fn reserve_legacy(&mut self, nexus: Nexus) -> Result<(), Refusal> {
        if !self.registrations.is_empty() || self.legacy.is_some_and(|owner| owner != nexus) {
            return Err(Refusal::Conflict);
        }
        self.legacy = Some(nexus);
        Ok(())
    }

    /// RELEASE: of another's reservation it does nothing.
    ///
    /// # Errors
    /// [`Refusal::Conflict`], where registrations are in use.
    pub fn release_legacy(&mut self, nexus: Nexus) -> Result<(), Refusal> {
        if !self.registrations.is_empty() {
            return Err(Refusal::Conflict);
        }
        self.lose(nexus);
        Ok(())
    }

    /// A session ended.
    pub fn lose(&mut self, nexus: Nexus) {
        self.legacy.take_if(|owner| *owner == nexus);
    }

    /// The unit was reset: a RESERVE ends, what is persistent stays.
    pub fn reset(&mut self) {
        self.legacy = None;
    }

    /// PERSISTENT RESERVE IN and OUT are refused while the unit is taken by RESERVE (SPC-2 §5.5.1).
    ///
    /// # Errors
    /// [`Refusal::Conflict`].
    pub fn persistent_allowed(&self) -> Result<(), Refusal> {
        if self.legacy.is_some() { Err(Refusal::Conflict) } else { Ok(()) }
    }

    /// PERSISTENT RESERVE OUT.
    ///
    /// # Errors
    /// RESERVATION CONFLICT, or what is wrong with the command. Nothing has changed then.
    pub fn change(
        &mut self,
        port: &InitiatorPort,
        service: u8,
        scope_type: u8,
        parameters: &Parameters,
    ) -> Result<Consequences, Refusal> {
        self.persistent_allowed()?;
        match service {
            action::REGISTER | action::REGISTER_AND_IGNORE => {
                return self.register(port, parameters, service == action::REGISTER_AND_IGNORE);
            }
            _ if self.key_of(port) != Some(parameters.key) => return Err(Refusal::Conflict),
            _ => {}
        }
        // The whole unit is the only scope (SPC-4 §6.15.3.3).
        let kind = || match scope_type >> 4 {
            0 => Kind::of_code(scope_type & 0x0F).ok_or(Refusal::Check(Sense::INVALID_FIELD_IN_CDB)),
            _ => Err(Refusal::Check(Sense::INVALID_FIELD_IN_CDB)),
        };
        match service {
            action::RESERVE => self.reserve(port, kind()?),
            action::RELEASE => self.release(port, kind()?),
            action::CLEAR => Ok(self.clear(port)),
            action::PREEMPT => self.preempt(port, parameters.service_key, kind, false),
            action::PREEMPT_AND_ABORT => self.preempt(port, parameters.service_key, kind, true),
            action::REGISTER_AND_MOVE => self.register_and_move(port, parameters),
            _ => Err(Refusal::Check(Sense::INVALID_FIELD_IN_CDB)),
        }
    }

    /// REGISTER, REGISTER AND IGNORE EXISTING KEY (SPC-4 §5.13.7).
    fn register(
        &mut self,
        port: &InitiatorPort,
        parameters: &Parameters,
        ignore: bool,
    ) -> Result<Consequences, Refusal> {
        let registered = self.key_of(port);
        if !ignore && registered.unwrap_or(0) != parameters.key {
            return Err(Refusal::Conflict);
        }
        let mut consequences = Consequences::default();
        match (registered, parameters.service_key) {
            (None, 0) => return Ok(consequences), // nothing to take back
            (None, key) => {
                if self.registrations.len() >= MAX_REGISTRATIONS {
                    return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
                }
                self.registrations.push(Registration { port: port.clone(), key });
            }
            (Some(_), 0) => consequences = self.unregister(port),
            (Some(_), key) => self.set_key(port, key),
        }
        self.kept = parameters.keep;
        self.generation = self.generation.wrapping_add(1);
        Ok(consequences)
    }

    fn set_key(&mut self, port: &InitiatorPort, key: u64) {
        for registration in self.registrations.iter_mut().filter(|registration| registration.port == *port) {
            registration.key = key;
        }
    }

    /// A port takes back its registration, and with it what it holds (SPC-4 §5.13.11.2).
    fn unregister(&mut self, port: &InitiatorPort) -> Consequences {
        let held = self.holds(port);
        self.registrations.retain(|registration| registration.port != *port);
        let released = self
            .held
            .take_if(|held_now| held && (!held_now.kind.held_by_all() || self.registrations.is_empty()))
            .filter(|released| released.kind.shared());
        Consequences {
            attentions: released.map_or(Vec::new(), |_| self.all_but(port, Sense::RESERVATIONS_RELEASED)),
            aborted: Vec::new(),
        }
    }

    fn all_but(&self, port: &InitiatorPort, sense: Sense) -> Vec<(InitiatorPort, Sense)> {
        let others = self.registrations.iter().filter(|registration| registration.port != *port);
        others.map(|registration| (registration.port.clone(), sense)).collect()
    }

    /// RESERVE (SPC-4 §5.13.9).
    fn reserve(&mut self, port: &InitiatorPort, kind: Kind) -> Result<Consequences, Refusal> {
        match &self.held {
            None => self.held = Some(Held { kind, by: port.clone() }),
            Some(held) if self.holds(port) && held.kind == kind => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Consequences::default())
    }

    /// RELEASE (SPC-4 §5.13.11.2.2).
    fn release(&mut self, port: &InitiatorPort, kind: Kind) -> Result<Consequences, Refusal> {
        if !self.holds(port) {
            return Ok(Consequences::default());
        }
        if self.held.as_ref().is_some_and(|held| held.kind != kind) {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.held = None;
        let told = if kind.shared() { self.all_but(port, Sense::RESERVATIONS_RELEASED) } else { Vec::new() };
        Ok(Consequences { attentions: told, aborted: Vec::new() })
    }

    /// CLEAR (SPC-4 §5.13.11.2.7).
    fn clear(&mut self, port: &InitiatorPort) -> Consequences {
        let attentions = self.all_but(port, Sense::RESERVATIONS_PREEMPTED);
        self.registrations.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Consequences { attentions, aborted: Vec::new() }
    }

    /// PREEMPT, PREEMPT AND ABORT (SPC-4 §5.13.11.2.4 to 6).
    fn preempt(
        &mut self,
        port: &InitiatorPort,
        key: u64,
        kind: impl Fn() -> Result<Kind, Refusal>,
        abort: bool,
    ) -> Result<Consequences, Refusal> {
        let holder_key = self.held.as_ref().and_then(|held| match held.kind.held_by_all() {
            true => Some(0),
            false => self.key_of(&held.by),
        });
        if key == 0 && holder_key != Some(0) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
        }
        let takes_over = holder_key == Some(key);
        // Where all hold it, key 0 means all the others.
        let named = |registration: &Registration| key == 0 || registration.key == key;
        if !takes_over && !self.registrations.iter().any(named) {
            return Err(Refusal::Conflict);
        }
        let kind = if takes_over { Some(kind()?) } else { None };
        let gone = self
            .registrations
            .extract_if(.., |registration| named(registration) && !(takes_over && registration.port == *port));
        let gone: Vec<InitiatorPort> = gone.map(|registration| registration.port).filter(|gone| gone != port).collect();
        let mut consequences = Consequences::default();
        if let Some(kind) = kind {
            let before = self.held.replace(Held { kind, by: port.clone() });
            if before.is_some_and(|before| before.kind != kind) {
                consequences.attentions = self.all_but(port, Sense::RESERVATIONS_RELEASED);
            }
        }
        if self.registrations.is_empty() {
            self.held = None;
        }
        consequences.attentions.extend(gone.iter().map(|gone| (gone.clone(), Sense::REGISTRATIONS_PREEMPTED)));
        if abort {
            consequences.aborted = gone;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(consequences)
    }

    /// REGISTER AND MOVE (SPC-4 §5.13.8).
    fn register_and_move(&mut self, port: &InitiatorPort, parameters: &Parameters) -> Result<Consequences, Refusal> {
        let kind = match &self.held {
            Some(held) if held.by == *port && !held.kind.held_by_all() => held.kind,
            _ => return Err(Refusal::Conflict),
        };
        let invalid = Refusal::Check(Sense::INVALID_FIELD_IN_PARAMETERS);
        let destination = parameters.moves_to.as_ref().filter(|to| *to != port).ok_or(invalid)?;
        if parameters.service_key == 0 {
            return Err(invalid);
        }
        if self.key_of(destination).is_some() {
            self.set_key(destination, parameters.service_key);
        } else if self.registrations.len() >= MAX_REGISTRATIONS {
            return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
        } else {
            self.registrations.push(Registration { port: destination.clone(), key: parameters.service_key });
        }
        self.held = Some(Held { kind, by: destination.clone() });
        if parameters.unregister {
            self.registrations.retain(|registration| registration.port != *port);
        }
        self.kept = parameters.keep;
        self.generation = self.generation.wrapping_add(1);
        Ok(Consequences::default())
    }
}

#[cfg(test)]
mod tests;
