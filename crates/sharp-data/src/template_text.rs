//! A template's text: what it asks for, and what has to be written otherwise for the template engine.

/// Says whether a template has a loop over a message's content.
pub(crate) fn loops_over_content(template: &str) -> bool {
    template.split("{%").skip(1).any(|tag| {
        let tag = tag.split("%}").next().unwrap_or_default().trim_start_matches(['-', '+']).trim_start();
        let over = tag.strip_prefix("for ").and_then(|rest| rest.split_once(" in "));
        over.is_some_and(|(_, over)| over.contains("content"))
    })
}

/// Removes the `{% generation %}` marks that transformers puts around the assistant's words.
pub(crate) fn without_generation_marks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        let Some((inside, after)) = tag.split_once("%}") else {
            // No tag ends any more.
            out.push_str("{%");
            out.push_str(tag);
            return out;
        };
        out.push_str("{%");
        match inside.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
            name @ ("generation" | "endgeneration") => {
                let with = if name == "generation" { "if true" } else { "endif" };
                out.push_str(&inside.replacen(name, with, 1));
            }
            _ => out.push_str(inside),
        }
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Says whether a template writes calls where a message's content is none, as DeepSeek's do after
/// `message['content'] is none`. Other templates see none left out, as transformers leaves it out.
pub(crate) fn calls_where_content_is_none(template: &str) -> bool {
    template.split("content").skip(1).any(|after| {
        let after = after.trim_start_matches(['\'', '"', ']']).trim_start();
        let Some(branch) = after.strip_prefix("is none") else { return false };
        let end = ["endif", "elif", "else"].iter().filter_map(|end| branch.find(end)).min();
        branch[..end.unwrap_or(branch.len())].contains("tool_calls")
    })
}

/// Bytes of an operand that is looked for after a text.
const LONGEST_OPERAND: usize = 1024;

/// Writes Python's operator for texts, `'%s' % x` and `'%s %s' % (x, y)`, as the filter `format`, which the
/// template engine has in its place.
pub(crate) fn with_format_calls(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let close = match rest[at + 1..].chars().next() {
            Some('{') => "}}",
            Some('%') => "%}",
            // A comment may hold anything.
            Some('#') => {
                let end = rest[at..].find("#}").map_or(rest.len(), |end| at + end + 2);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            _ => {
                out.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
                continue;
            }
        };
        out.push_str(&rest[..at + 2]);
        rest = tag(&rest[at + 2..], close, &mut out);
    }
    out.push_str(rest);
    out
}

/// Writes the inside of a tag up to `close` and returns what follows.
fn tag<'t>(mut rest: &'t str, close: &str, out: &mut String) -> &'t str {
    loop {
        if rest.is_empty() || rest.starts_with(close) {
            return rest;
        }
        if !rest.starts_with(['\'', '"']) {
            let next = rest.char_indices().nth(1).map_or(rest.len(), |(at, _)| at);
            out.push_str(&rest[..next]);
            rest = &rest[next..];
            continue;
        }
        let (literal, after) = rest.split_at(literal_end(rest));
        let near = &after[..after.floor_char_boundary(LONGEST_OPERAND)];
        let operator = near.trim_start().strip_prefix('%').filter(|_| !near.trim_start().starts_with(close));
        match operator.map(str::trim_start).and_then(|operand| Some((operand, operand_end(operand)?))) {
            Some((operand, end)) => {
                let at = near.len() - operand.len();
                let inside = operand[..end].strip_prefix('(').and_then(|tuple| tuple.strip_suffix(')'));
                let arguments = inside.unwrap_or(&operand[..end]).trim().trim_end_matches(',');
                out.push_str(&format!("({literal}|format({arguments}))"));
                rest = &after[at + end..];
            }
            None => {
                out.push_str(literal);
                rest = after;
            }
        }
    }
}

/// Returns where the text literal ends that `text` begins with.
fn literal_end(text: &str) -> usize {
    let mut escaped = false;
    let quote = text.chars().next();
    for (at, c) in text.char_indices().skip(1) {
        if !escaped && Some(c) == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    text.len()
}

/// Returns where the operand ends that `text` begins with: a tuple, or a name or literal with what is asked
/// of it.
fn operand_end(text: &str) -> Option<usize> {
    let mut at = match text.chars().next()? {
        '(' => return bracket_end(text),
        '\'' | '"' => literal_end(text),
        c if c.is_alphanumeric() || c == '_' => word_end(text),
        _ => return None,
    };
    loop {
        let rest = &text[at..];
        at += match rest.chars().next() {
            Some('[' | '(') => bracket_end(rest)?,
            Some('.') => 1 + word_end(&rest[1..]),
            _ => match rest.trim_start().strip_prefix('|').map(str::trim_start) {
                // Filters bind more closely than operators.
                Some(filter) => rest.len() - filter.len() + word_end(filter),
                None => return Some(at),
            },
        };
    }
}

fn word_end(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// Returns where the bracket closes that `text` begins with.
fn bracket_end(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(c) = text[at..].chars().next() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            '\'' | '"' => {
                at += literal_end(&text[at..]);
                continue;
            }
            _ => {}
        }
        at += c.len_utf8();
        if depth == 0 {
            return Some(at);
        }
    }
    None
}
