//! CHAP (RFC 7143 §12.1, RFC 1994): an initiator proves that it knows its secret without saying it, and may have the target
//! prove the same.
//!
//! Pure: identifiers and challenges are made elsewhere, of the system's random numbers, and used once. Secrets are made by
//! Roost, long and never equal, so that a target's answer is of no use against the target itself.

use std::fmt;

use md5::{Digest, Md5};
use sha2::Sha256;
use sha3::Sha3_256;

/// Largest challenge, in bytes (RFC 7143 §12.1.4).
const MAX_CHALLENGE: usize = 1024;

/// How a secret is mixed with a challenge: the numbers are IANA's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// MD5: all that iPXE and old systems have.
    Md5 = 5,
    /// SHA-256.
    Sha256 = 7,
    /// SHA3-256.
    Sha3_256 = 8,
}

impl Algorithm {
    /// The strongest of these, as `CHAP_A` lists them.
    #[must_use]
    pub fn strongest_of(list: &str) -> Option<Self> {
        let offered = |algorithm: &Self| list.split(',').any(|number| number == (*algorithm as u8).to_string());
        [Self::Sha3_256, Self::Sha256, Self::Md5].into_iter().find(offered)
    }

    /// Its number, as `CHAP_A` names it.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Bytes of a response, and as many of the challenges that we make.
    fn length(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 | Self::Sha3_256 => 32,
        }
    }

    /// The response to a challenge (RFC 1994 §4.1).
    #[must_use]
    pub fn respond(self, identifier: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
        fn mix<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        let parts = [&[identifier][..], secret.as_bytes(), challenge];
        match self {
            Self::Md5 => mix::<Md5>(parts),
            Self::Sha256 => mix::<Sha256>(parts),
            Self::Sha3_256 => mix::<Sha3_256>(parts),
        }
    }
}

/// What both ends of one client's target know. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The initiator's name, and its secret.
    pub user: String,
    /// What the initiator proves to know.
    pub secret: String,
    /// The target's name.
    pub target_user: String,
    /// What the target proves to know; never what the initiator does.
    pub target_secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Random numbers for one login: an identifier and a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce {
    /// The identifier.
    pub identifier: u8,
    /// The challenge, of which an algorithm uses as much as it puts out.
    pub challenge: [u8; 32],
}

/// A challenge that waits for its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    algorithm: Algorithm,
    nonce: Nonce,
}

/// Why an initiator, or a text of its, does not pass. For the operator; the initiator gets a status and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It did not begin with a login that can lead to CHAP.
    #[error("it offers no CHAP, which this client's disk asks for")]
    NotOffered,
    /// Something else than CHAP where no secret is known.
    #[error("it insists on authentication, which is not set up here: switch it off there")]
    NotSetUp,
    /// None of its algorithms is known.
    #[error("it offers no CHAP algorithm of 8 (SHA3-256), 7 (SHA-256) and 5 (MD5)")]
    Algorithm,
    /// A key of the exchange is missing, or its value is none.
    #[error("its CHAP texts are incomplete or malformed")]
    Malformed,
    /// Another name than the client's.
    #[error("its CHAP name is not this client's")]
    Name,
    /// It does not know the secret.
    #[error("its CHAP secret is wrong; after `roost replace` the secret is a new one, which the boot script brings")]
    Secret,
    /// Our own challenge came back: somebody wants us to answer it.
    #[error("it sent our own CHAP challenge back, to have us answer it")]
    Reflection,
}

impl Challenge {
    /// The challenge for this algorithm.
    #[must_use]
    pub fn new(algorithm: Algorithm, nonce: Nonce) -> Self {
        Self { algorithm, nonce }
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// `CHAP_I`.
    #[must_use]
    pub fn identifier(&self) -> u8 {
        self.nonce.identifier
    }

    /// `CHAP_C`.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.nonce.challenge[..self.algorithm.length()]
    }

    /// Checks the initiator's name and response.
    ///
    /// # Errors
    /// It does not pass.
    pub fn check(&self, credentials: &Credentials, name: &str, response: &str) -> Result<(), Refusal> {
        let response = binary(response, self.algorithm.length()).ok_or(Refusal::Malformed)?;
        let expected = self.algorithm.respond(self.nonce.identifier, &credentials.secret, self.bytes());
        let (known, right) = (same(name.as_bytes(), credentials.user.as_bytes()), same(&response, &expected));
        match (known, right) {
            (true, true) => Ok(()),
            (false, _) => Err(Refusal::Name),
            (true, false) => Err(Refusal::Secret),
        }
    }

    /// The target's own response to a challenge of the initiator's.
    ///
    /// # Errors
    /// The challenge is no challenge, or our own.
    pub fn answer(&self, credentials: &Credentials, identifier: &str, challenge: &str) -> Result<Vec<u8>, Refusal> {
        let identifier = number(identifier).ok_or(Refusal::Malformed)?;
        let challenge = binary(challenge, MAX_CHALLENGE).ok_or(Refusal::Malformed)?;
        if challenge == self.bytes() {
            return Err(Refusal::Reflection);
        }
        Ok(self.algorithm.respond(identifier, &credentials.target_secret, &challenge))
    }
}

/// Whether two texts are the same, in a time that does not tell how much of them is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && std::hint::black_box(left.iter().zip(right).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

/// An identifier: 0 to 255, decimal or hexadecimal.
fn number(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = hex.map_or((text, 10), |hex| (hex, 16));
    let plain = digits.len() <= 4 && digits.chars().all(|c| c.is_digit(radix));
    plain.then(|| u8::from_str_radix(digits, radix).ok()).flatten()
}

/// Bytes as hexadecimal.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// A binary value of 1 to `most` bytes, hexadecimal or base64 (RFC 7143 §6.1).
fn binary(text: &str, most: usize) -> Option<Vec<u8>> {
    let (front, digits) = text.split_at_checked(2)?;
    if digits.is_empty() || !digits.is_ascii() || digits.len() > most * 2 + 2 {
        return None;
    }
    let bytes = match front {
        "0x" | "0X" => from_hexadecimal(digits),
        "0b" | "0B" => from_base64(digits),
        _ => None,
    }?;
    (1..=most).contains(&bytes.len()).then_some(bytes)
}

/// An odd count of digits means a zero before them.
fn from_hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Option<Vec<u8>> = digits.as_bytes().iter().map(digit).collect();
    Some(digits?.rchunks(2).rev().map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

fn from_base64(digits: &str) -> Option<Vec<u8>> {
    let value = |c: u8| {
        Some(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    let digits = digits.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len());
    for group in digits.chunks(4) {
        let bits = group.iter().try_fold(0_u32, |bits, c| Some(bits << 6 | u32::from(value(*c)?)))?;
        let bits = bits << (6 * (4 - group.len()));
        let [_, quad @ ..] = bits.to_be_bytes();
        bytes.extend_from_slice(&quad[..group.len().checked_sub(1).filter(|length| *length > 0)?]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credentials() -> Credentials {
        Credentials {
            user: "pc-01".into(),
            secret: "abcdefghijkl".into(),
            target_user: "roost".into(),
            target_secret: "mnopqrstuvwx".into(),
        }
    }

    fn challenge(algorithm: Algorithm) -> Challenge {
        Challenge::new(algorithm, Nonce { identifier: 7, challenge: std::array::from_fn(|n| u8::try_from(n).unwrap()) })
    }

    #[test]
    fn responses_are_those_that_other_programs_compute() {
        // Computed by Python's hashlib over the byte 7, "abcdefghijkl" and the bytes 0 to 15, or to 31.
        for (algorithm, expected) in
            [(Algorithm::Md5, MD5), (Algorithm::Sha256, SHA256), (Algorithm::Sha3_256, SHA3_256)]
        {
            let challenge = challenge(algorithm);
            let response = algorithm.respond(7, "abcdefghijkl", challenge.bytes());
            assert_eq!(hexadecimal(&response), expected);
            assert_eq!(challenge.check(&credentials(), "pc-01", expected), Ok(()));
        }
    }
    const MD5: &str = "0xfb9e45ac2c8befdb26ac0bdcbbf7b715";
    const SHA256: &str = "0xde45390b1a0669e6670755e45b32f98000e46db87347b47cf073828ba6cca53e";
    const SHA3_256: &str = "0x780383b27db61afa8914e77c69b987a7318de748c975d8d0f5a3e7b745ca0a63";

    #[test]
    fn the_strongest_offered_algorithm_is_taken() {
        for (list, expected) in [
            ("5", Some(Algorithm::Md5)),
            ("5,7", Some(Algorithm::Sha256)),
            ("8,7,6,5", Some(Algorithm::Sha3_256)),
            ("6,5", Some(Algorithm::Md5)),
            ("6", None),
            ("", None),
            ("05", None),
            ("55,77", None),
        ] {
            assert_eq!(Algorithm::strongest_of(list), expected, "{list:?}");
        }
    }

    #[test]
    fn a_wrong_name_secret_or_text_does_not_pass() {
        let challenge = challenge(Algorithm::Md5);
        let check = |name, response: &str| challenge.check(&credentials(), name, response);
        assert_eq!(check("pc-02", MD5), Err(Refusal::Name));
        let wrong = challenge.algorithm().respond(7, "abcdefghijkm", challenge.bytes());
        assert_eq!(check("pc-01", &hexadecimal(&wrong)), Err(Refusal::Secret));
        for malformed in ["", "0x", "0xg", "ab", "0b", "0b!", "0bA", "0x€€", &format!("0x{}", "0".repeat(200_000))]
        {
            assert_eq!(check("pc-01", malformed), Err(Refusal::Malformed), "{malformed:.20}");
        }
        assert_eq!(check("pc-01", "0x00"), Err(Refusal::Secret), "too short is wrong, too");
    }

    #[test]
    fn our_own_challenge_is_not_answered() {
        let challenge = challenge(Algorithm::Sha256);
        let reflected = hexadecimal(challenge.bytes());
        assert_eq!(challenge.answer(&credentials(), "7", &reflected), Err(Refusal::Reflection));
        for (identifier, bytes) in
            [("256", "0x01"), ("-1", "0x01"), ("", "0x01"), ("+7", "0x01"), ("7", "0x"), ("7", "")]
        {
            assert_eq!(challenge.answer(&credentials(), identifier, bytes), Err(Refusal::Malformed));
        }
        let long = |bytes: usize| format!("0x{}", "ab".repeat(bytes));
        assert!(challenge.answer(&credentials(), "0xff", &long(1024)).is_ok());
        assert_eq!(challenge.answer(&credentials(), "255", &long(1025)), Err(Refusal::Malformed));
    }

    #[test]
    fn no_secret_is_ever_printed() {
        let shown = format!("{:?}", credentials());
        assert!(!shown.contains("abcdefghijkl") && !shown.contains("mnopqrstuvwx"), "{shown}");
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases = [
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ];
        for (text, bytes) in cases {
            assert_eq!(from_base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(from_hexadecimal("abc"), Some(vec![0x0a, 0xbc]));
    }

    proptest! {
        #[test]
        fn binary_values_come_back_and_any_text_is_one_or_none(bytes in prop::collection::vec(any::<u8>(), 1..300), text: String) {
            prop_assert_eq!(binary(&hexadecimal(&bytes), 300), Some(bytes));
            for front in ["", "0x", "0b"] {
                let _ = binary(&format!("{front}{text}"), 300);
            }
        }
    }
}
