//! What a `WWW-Authenticate` header asks for.

use std::collections::BTreeMap;

/// One way to authenticate that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Parses all challenges of all headers; what is unknown is left out.
pub(super) fn parse(headers: &[&str]) -> Vec<Challenge> {
    headers
        .iter()
        .flat_map(|header| schemes(header))
        .filter_map(|(name, parameters)| known(&name, parameters))
        .collect()
}

fn known(name: &str, mut parameters: BTreeMap<String, String>) -> Option<Challenge> {
    match name.to_ascii_lowercase().as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        }),
        _ => None,
    }
}

/// Splits `Scheme name=value, name="value", Scheme ...`.
fn schemes(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after_spaces = after.trim_start();
        if let Some(value) = after_spaces.strip_prefix('=') {
            let (value, after) = parse_value(value.trim_start());
            if let Some((_, parameters)) = found.last_mut() {
                parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = after;
        } else {
            if !word.is_empty() {
                found.push((word.to_owned(), BTreeMap::new()));
            }
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '=']);
    }
    found
}

/// Reads a word or a quoted text; returns it and what follows.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_as_registries_send_them() {
        for (text, expected) in [
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#,
                vec![bearer("https://a/t", Some("s"), Some("repository:x:pull,push"))],
            ),
            (r#"bearer Realm = https://a , service=s"#, vec![bearer("https://a", Some("s"), None)]),
            (r#"Basic realm="a, b=c \"d\"""#, vec![Challenge::Basic]),
            (r#"Basic realm="x", Bearer realm="y""#, vec![Challenge::Basic, bearer("y", None, None)]),
            (r#"Negotiate, Basic"#, vec![Challenge::Basic]),
            (r#"Bearer service="s""#, vec![]),
            ("", vec![]),
            (r#"Bearer realm="open"#, vec![bearer("open", None, None)]),
        ] {
            assert_eq!(parse(&[text]), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "\\PC{0,80}|[a-zA-Z=\", \\\\]{0,60}") {
            let _ = parse(&[&text]);
        }
    }
}
