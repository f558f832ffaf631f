//! Dates for templates that print today's: `strftime` in UTC, without a time zone database.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or(0)
}

/// The date of a day counted from 1970-01-01, in the proleptic Gregorian calendar (year, month 1-12, day 1-31), by Howard
/// Hinnant's `civil_from_days`: years that begin in March end with their leap day.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// The moment `seconds` written by `format`, in English and UTC; a directive that is not known is an error.
pub(crate) fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let month_name = MONTHS.get((month - 1) as usize).copied().unwrap_or("");
    let day_name = DAYS.get(days.rem_euclid(7) as usize).copied().unwrap_or("");
    let short = |name: &'static str| name.get(..3).unwrap_or(name);
    let mut day_of_year = day;
    for m in 1..month {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        day_of_year += match m {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
    }
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let padded = directive != Some('-');
        if !padded {
            directive = chars.next();
        }
        let mut number = |n: i64, width: usize| {
            // Writing to a String cannot fail.
            let _ = if padded { write!(out, "{n:0width$}") } else { write!(out, "{n}") };
        };
        match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('j') => number(day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(short(month_name)),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(short(day_name)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            Some(other) => return Err(format!("strftime_now does not know %{other}")),
            None => return Err("strftime_now: the format ends in a lone %".into()),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values from Python's datetime.strftime.
    #[test]
    fn as_python_writes_it() {
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I %p %% %-d";
        assert_eq!(
            strftime(all, 0).unwrap(),
            "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 12 AM % 1"
        );
        assert_eq!(
            strftime(all, 1_709_210_096).unwrap(),
            "2024-02-29 12:34:56 Thu Thursday Feb February 060 24 12 PM % 29"
        );
        assert_eq!(strftime("%d %b %Y", -1).unwrap(), "31 Dec 1969");
        assert_eq!(strftime("%j", 1_735_603_200).unwrap(), "366");
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
    }
}
