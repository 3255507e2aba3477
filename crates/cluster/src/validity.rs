//! From when to when a certificate is valid: as much of X.509 as that takes.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// From when to when a certificate is valid, in seconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// The first second.
    pub from: i64,
    /// The last second.
    pub until: i64,
}

impl Validity {
    /// That of the first certificate in a text (PEM); `None` when there is none, or it cannot be
    /// read.
    #[must_use]
    pub fn of_pem(pem: &[u8]) -> Option<Self> {
        Self::of_der(&CertificateDer::from_pem_slice(pem).ok()?)
    }

    fn of_der(der: &[u8]) -> Option<Self> {
        let (_, certificate, _) = element(der)?;
        let (_, mut body, _) = element(certificate)?;
        // The version may be left out; then come serial number, algorithm and issuer.
        let (tag, _, rest) = element(body)?;
        if tag == VERSION {
            body = rest;
        }
        for _ in 0..3 {
            body = element(body)?.2;
        }
        let (_, times, _) = element(body)?;
        let (from_tag, from, rest) = element(times)?;
        let (until_tag, until, _) = element(rest)?;
        Some(Self { from: seconds(from_tag, from)?, until: seconds(until_tag, until)? })
    }
}

const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first element of some DER: its tag, its content, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, the only forms that certificates have.
fn seconds(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        str::from_utf8(digits.get(range)?).ok()?.parse().ok()
    };
    let (year, at) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(0..2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        }
        (GENERALIZED_TIME, 14) => (number(0..4)?, 4),
        _ => return None,
    };
    let two = |index: usize| number(at + 2 * index..at + 2 * index + 2);
    let (month, day) = (two(0)?, two(1)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(days(year, month, day) * 86_400 + two(2)? * 3600 + two(3)? * 60 + two(4)?)
}

/// The days from 1970-01-01 to a date of the Gregorian calendar.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March end with the leap day.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    #[test]
    fn the_times_of_a_certificate_are_read_in_both_forms() {
        let key = KeyPair::generate().unwrap();
        for (from, until, due) in [
            ((1975, 1, 1), (4096, 1, 1), (157_766_400, 67_090_118_400)),
            ((2024, 2, 29), (2026, 12, 31), (1_709_164_800, 1_798_675_200)),
            ((2049, 12, 31), (2050, 1, 1), (2_524_521_600, 2_524_608_000)),
        ] {
            let mut params = CertificateParams::default();
            params.not_before = date_time_ymd(from.0, from.1, from.2);
            params.not_after = date_time_ymd(until.0, until.1, until.2);
            let pem = params.self_signed(&key).unwrap().pem();
            let found = Validity::of_pem(pem.as_bytes()).unwrap();
            assert_eq!((found.from, found.until), due);
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_times() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        let der = certificate.der();
        for len in 0..der.len().min(200) {
            let _ = Validity::of_der(&der[..len]);
        }
        assert_eq!(Validity::of_der(&der[..40]), None);
        for text in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(Validity::of_pem(text.as_bytes()), None, "{text}");
        }
    }
}
