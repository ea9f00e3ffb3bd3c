//! Times and durations as users write them: `500ms`, `30s`, `2026-11-21T08:00:00Z`, `-15m` (fifteen minutes ago).

use crate::clock::Clock;
use crate::ids::TimestampMs;
use std::time::Duration;

/// What [`moment`] understands, for messages.
pub(super) const FORMS: &str =
    "2026-11-21, 2026-11-21T08:00:00Z, 2026-11-21T08:00:00.5+01:00 or -15m (fifteen minutes ago)";

/// Reads a duration with its unit: ms, s, m, h or d.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("write a whole number and its unit, as in 500ms, 30s, 2m, 1h or 7d".to_string()),
    };
    let number: u64 = number.parse().map_err(|_| "write a whole number before the unit, as in 30s".to_string())?;
    let ms = number.checked_mul(scale_ms).filter(|ms| *ms <= 366 * 86_400_000 * 100);
    let ms = ms.ok_or_else(|| "that is more than a hundred years".to_string())?;
    if ms == 0 {
        return Err("it must be longer than nothing".to_string());
    }
    Ok(Duration::from_millis(ms))
}

/// Reads a moment: a date, a date and time as in RFC 3339, or a duration ago.
pub(super) fn moment(text: &str, clock: &Clock) -> Option<TimestampMs> {
    if let Some(ago) = text.strip_prefix('-') {
        let ago = duration(ago).ok()?.as_millis() as u64;
        return Some(TimestampMs(clock.now().0.saturating_sub(ago)));
    }
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, time),
        None => (text, "00:00:00Z"),
    };
    let ms = days_since_epoch(date)?.checked_mul(86_400_000)?.checked_add(time_of_day_ms(time)?)?;
    u64::try_from(ms).ok().map(TimestampMs)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_epoch(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if parts.next().is_some() || day < 1 || day > days_in_month {
        return None;
    }
    // Years begin in March here, so that the leap day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468)
}

/// Milliseconds from midnight UTC to a time of day with its offset; may lie outside the day.
fn time_of_day_ms(time: &str) -> Option<i64> {
    let zone_at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone_at);
    let offset_min = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let minutes = number(hours, 2)? * 60 + number(minutes, 2)?;
            if zone.starts_with('-') {
                -minutes
            } else {
                minutes
            }
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let (hour, minute) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let second = parts.next().map_or(Some(0), |second| number(second, 2))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
        return None;
    }
    let thousandths: String = fraction.chars().chain("000".chars()).take(3).collect();
    let ms = number(&thousandths, 3)?;
    number(fraction, fraction.len())?;
    Some(((hour * 60 + minute - offset_min) * 60 + second) * 1_000 + ms)
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_rfc_3339_says() {
        let clock = Clock::default();
        for (text, expected) in [
            ("1970-01-01", 0),
            ("1970-01-01T00:00:01Z", 1_000),
            ("2000-02-29T12:30:15.25Z", 951_827_415_250),
            ("2026-11-21T08:00:00Z", 1_795_248_000_000),
            ("2026-11-21T09:00:00+01:00", 1_795_248_000_000),
            ("2026-11-21 08:00Z", 1_795_248_000_000),
        ] {
            assert_eq!(moment(text, &clock), Some(TimestampMs(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        let clock = Clock::default();
        for text in
            ["", "yesterday", "2026-13-01", "2026-02-29", "2026-11-21T25:00:00Z", "2026-11-21T08:00:00", "12", "-5"]
        {
            assert_eq!(moment(text, &clock), None, "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "5", "s", "-1s", "1.5s", "0s", "99999999999999999999s", "9999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
