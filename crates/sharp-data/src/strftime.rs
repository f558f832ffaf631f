//! Writes dates for templates that print today's: Python's `strftime`, in English and UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The directives of Python's `strftime` that stand for a part of a date in English.
const DIRECTIVES: &str = "aAbBdeFhHIjmMpSTuUVwWyYzZ%";

/// Writes the moment `seconds` since 1970 (now, where that is `None`) by `format`, in English and UTC.
///
/// # Errors
/// A directive that is not known, a lone `%` at the end, or a moment beyond the calendar.
pub(crate) fn strftime(format: &str, seconds: Option<i64>) -> Result<String, String> {
    let mut rest = format.chars();
    while rest.by_ref().any(|c| c == '%') {
        let directive = rest.by_ref().find(|c| *c != '-');
        if !directive.is_some_and(|c| DIRECTIVES.contains(c)) {
            let named = directive.map_or_else(String::new, |c| c.to_string());
            return Err(format!("strftime_now does not know %{named}"));
        }
    }
    let wrong = |e: jiff::Error| format!("strftime_now: {e}");
    let moment = seconds.map_or_else(|| Ok(Timestamp::now()), Timestamp::from_second).map_err(wrong)?;
    jiff::fmt::strtime::format(format, &moment.to_zoned_datetime(TimeZone::UTC)).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values from Python's datetime.strftime.
    #[test]
    fn as_python_writes_it() {
        let strftime = |format: &str, seconds| super::strftime(format, Some(seconds));
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I %p %% %-d %e %h %F %T %Z %z";
        assert_eq!(
            strftime(all, 0).unwrap(),
            "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 12 AM % 1  1 Jan 1970-01-01 00:00:00 UTC +0000"
        );
        assert_eq!(
            strftime(all, 1_709_210_096).unwrap(),
            "2024-02-29 12:34:56 Thu Thursday Feb February 060 24 12 PM % 29 29 Feb 2024-02-29 12:34:56 UTC +0000"
        );
        assert_eq!(strftime("%d %b %Y", -1).unwrap(), "31 Dec 1969");
        assert_eq!(strftime("%j", 1_735_603_200).unwrap(), "366");
        assert!(strftime("%", 0).is_err());
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"), "jiff's own directives are not Python's");
        assert!(strftime("%!", 0).is_err());
        assert!(strftime("%Y", i64::MAX).is_err());
    }

    #[test]
    fn without_a_moment_it_is_now() {
        let year: i32 = strftime("%Y", None).unwrap().parse().unwrap();
        assert!(year >= 2026);
    }
}
