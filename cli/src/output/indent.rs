//! JSON with other white space, all else left as it is.

/// Puts each member and element on a line of its own, `step` deeper than what it is in, as Go's `json.Indent` does. The order of
/// members and the spelling of numbers and strings stay, which a parser would not keep. `json` must be JSON.
pub(crate) fn indent(json: &str, step: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(step));
    };
    let (mut in_string, mut escaped) = (false, false);
    // Whether the last that was written opened an object or array: nothing may follow in it.
    let mut opened = false;
    for letter in json.chars() {
        if in_string {
            out.push(letter);
            in_string = escaped || letter != '"';
            escaped = !escaped && letter == '\\';
            continue;
        }
        if letter.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(letter, '}' | ']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        if opened != closes {
            line(&mut out, depth);
        }
        opened = matches!(letter, '{' | '[');
        out.push(letter);
        match letter {
            '{' | '[' => depth += 1,
            ',' => line(&mut out, depth),
            ':' => out.push(' '),
            '"' => in_string = true,
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::indent;

    #[test]
    fn white_space_is_that_of_go() {
        let json = r#" {"b":[1, 2.50,{}],"a" : "x: {\"y\\\", [",
            "e":[],"c":{"d":null}}"#;
        let expected = "{\n\t\"b\": [\n\t\t1,\n\t\t2.50,\n\t\t{}\n\t],\n\t\"a\": \"x: {\\\"y\\\\\\\", [\",\n\t\"e\": [],\n\t\"c\": {\n\t\t\"d\": null\n\t}\n}";
        assert_eq!(indent(json, "\t"), expected);
        assert_eq!(indent(expected, "\t"), expected);
        assert_eq!(indent("[]", "  "), "[]");
        assert_eq!(indent("7", "  "), "7");
    }
}
