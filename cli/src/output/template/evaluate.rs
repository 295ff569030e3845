//! Nodes and data to text.

use serde_json::Value;

use super::{Expression, Node};

/// What expressions can see.
#[derive(Clone, Copy)]
struct Scope<'a> {
    /// `$`
    top: &'a Value,
    /// `.`
    dot: &'a Value,
    /// The variables of the loops around, innermost first.
    variables: Option<&'a Bound<'a>>,
}

struct Bound<'a> {
    name: &'a str,
    value: Value,
    outer: Option<&'a Bound<'a>>,
}

pub(super) fn render(nodes: &[Node], data: &Value, out: &mut String) -> Result<(), String> {
    render_in(nodes, Scope { top: data, dot: data, variables: None }, out)
}

fn render_in(nodes: &[Node], scope: Scope<'_>, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Show(expression) => match evaluate(expression, scope)? {
                Value::Null => out.push_str(show_nothing(expression)),
                value => out.push_str(&show(&value)),
            },
            Node::If { condition, then, otherwise } => {
                let chosen = if is_true(&evaluate(condition, scope)?) { then } else { otherwise };
                render_in(chosen, scope, out)?;
            }
            Node::With { value, body, otherwise } => {
                let value = evaluate(value, scope)?;
                if is_true(&value) {
                    render_in(body, Scope { dot: &value, ..scope }, out)?;
                } else {
                    render_in(otherwise, scope, out)?;
                }
            }
            Node::Range { over, bound, body, otherwise } => {
                let elements = elements(evaluate(over, scope)?)?;
                if elements.is_empty() {
                    render_in(otherwise, scope, out)?;
                }
                for (key, element) in elements {
                    let (key_name, value_name) = match bound {
                        Some((key, value)) => (key.as_deref(), value.as_str()),
                        None => (None, ""),
                    };
                    let key = Bound { name: key_name.unwrap_or(""), value: key, outer: scope.variables };
                    let value = Bound { name: value_name, value: element.clone(), outer: Some(&key) };
                    render_in(body, Scope { dot: &element, variables: Some(&value), ..scope }, out)?;
                }
            }
        }
    }
    Ok(())
}

fn evaluate(expression: &Expression, scope: Scope<'_>) -> Result<Value, String> {
    match expression {
        Expression::Literal(value) => Ok(value.clone()),
        Expression::Field { from_top, path } => field(if *from_top { scope.top } else { scope.dot }, path),
        Expression::Inside { value, path } => field(&evaluate(value, scope)?, path),
        Expression::Variable { name, path } => {
            let mut variable = scope.variables;
            while let Some(bound) = variable {
                if bound.name == name {
                    return field(&bound.value, path);
                }
                variable = bound.outer;
            }
            Err(format!("template: variable \"${name}\" is not known"))
        }
        Expression::Call { function, arguments } => {
            let arguments =
                arguments.iter().map(|argument| evaluate(argument, scope)).collect::<Result<Vec<_>, _>>()?;
            call(function, &arguments)
        }
    }
}

fn field(value: &Value, path: &[String]) -> Result<Value, String> {
    let mut value = value;
    let mut within = "";
    for name in path {
        value = match value {
            Value::Object(fields) => match fields.get(name) {
                Some(inner) => inner,
                None if MAPS.contains(&within) || OPTIONAL.contains(&name.as_str()) => &Value::Null,
                // As the field is called in Docker's own programs, whose templates both names suit.
                None if name == "ID" && fields.contains_key("Id") => &fields["Id"],
                None => {
                    let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
                    names.sort_unstable();
                    return Err(format!("template: no field {name:?} here; there are {}", names.join(", ")));
                }
            },
            other => return Err(format!("template: cannot take field {name:?} of {}", kind(other))),
        };
        within = name;
    }
    Ok(value.clone())
}

/// What has keys of its author's own, of which any may be absent. Other fields are known, so a wrong name is a mistake.
const MAPS: [&str; 2] = ["Attributes", "Labels"];

/// What need not be there.
const OPTIONAL: [&str; 7] =
    ["ExposedPorts", "Healthcheck", "OsVersion", "Shell", "StopSignal", "StopTimeout", "Variant"];

/// What Go prints where an expression leads to nothing: that goes by the type that something there would have.
fn show_nothing(expression: &Expression) -> &'static str {
    let last = match expression {
        Expression::Field { path, .. } | Expression::Inside { path, .. } | Expression::Variable { path, .. } => {
            path.last()
        }
        Expression::Call { function, .. } if function == "index" => return "",
        _ => None,
    };
    match last.map_or("", String::as_str) {
        "Cmd" | "Entrypoint" | "Env" | "OnBuild" | "Shell" => "[]",
        "Data" | "ExposedPorts" | "Labels" | "Volumes" => "map[]",
        "Healthcheck" | "StopTimeout" => "<nil>",
        "OsVersion" | "StopSignal" | "Variant" => "",
        _ => "<no value>",
    }
}

fn call(function: &str, arguments: &[Value]) -> Result<Value, String> {
    let wrong = || format!("template: {function:?} cannot take these arguments");
    match (function, arguments) {
        ("json", [value]) => Ok(Value::from(value.to_string())),
        ("len", [Value::Array(list)]) => Ok(Value::from(list.len())),
        ("len", [Value::Object(fields)]) => Ok(Value::from(fields.len())),
        ("len", [Value::String(text)]) => Ok(Value::from(text.len())),
        ("len", [Value::Null]) => Ok(Value::from(0)),
        ("index", [value, keys @ ..]) if !keys.is_empty() => {
            keys.iter().try_fold(value.clone(), |value, key| index(&value, key))
        }
        ("upper", [value]) => Ok(Value::from(show(value).to_uppercase())),
        ("lower", [value]) => Ok(Value::from(show(value).to_lowercase())),
        ("title", [value]) => {
            let text = show(value);
            let mut letters = text.chars();
            let first: String = letters.next().map(|letter| letter.to_uppercase().collect()).unwrap_or_default();
            Ok(Value::from(first + letters.as_str()))
        }
        ("join", [Value::Array(list), Value::String(separator)]) => {
            Ok(Value::from(list.iter().map(show).collect::<Vec<_>>().join(separator)))
        }
        ("join", [Value::Null, _]) => Ok(Value::from("")),
        ("split", [Value::String(text), Value::String(separator)]) => {
            Ok(Value::Array(text.split(separator.as_str()).map(Value::from).collect()))
        }
        ("truncate", [value, Value::Number(length)]) => {
            let length = length.as_u64().and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
            Ok(Value::from(show(value).chars().take(length).collect::<String>()))
        }
        ("pad", [value, Value::Number(before), Value::Number(after)]) => {
            let spaces = |count: &serde_json::Number| " ".repeat(count.as_u64().unwrap_or(0).min(1000) as usize);
            Ok(Value::from(format!("{}{}{}", spaces(before), show(value), spaces(after))))
        }
        ("print", values) => Ok(Value::from(values.iter().map(show).collect::<Vec<_>>().join(" "))),
        ("println", values) => Ok(Value::from(values.iter().map(show).collect::<Vec<_>>().join(" ") + "\n")),
        ("printf", [Value::String(format), values @ ..]) => printf(format, values).map(Value::from),
        ("not", [value]) => Ok(Value::Bool(!is_true(value))),
        ("and", [first, rest @ ..]) => {
            Ok(rest.iter().fold(first, |value, next| if is_true(value) { next } else { value }).clone())
        }
        ("or", [first, rest @ ..]) => {
            Ok(rest.iter().fold(first, |value, next| if is_true(value) { value } else { next }).clone())
        }
        ("eq", [first, rest @ ..]) if !rest.is_empty() => Ok(Value::Bool(rest.iter().any(|value| value == first))),
        ("ne", [first, second]) => Ok(Value::Bool(first != second)),
        (
            "json" | "len" | "index" | "upper" | "lower" | "title" | "join" | "split" | "truncate" | "pad" | "printf"
            | "not" | "and" | "or" | "eq" | "ne",
            _,
        ) => Err(wrong()),
        _ => Err(format!("template: function {function:?} is not known")),
    }
}

fn index(value: &Value, key: &Value) -> Result<Value, String> {
    match (value, key) {
        (Value::Array(list), Value::Number(position)) => position
            .as_u64()
            .and_then(|position| usize::try_from(position).ok())
            .and_then(|position| list.get(position))
            .cloned()
            .ok_or_else(|| format!("template: index {position} is out of range")),
        (Value::Object(fields), Value::String(name)) => Ok(fields.get(name).cloned().unwrap_or(Value::Null)),
        (Value::Null, _) => Ok(Value::Null),
        (other, _) => Err(format!("template: cannot index {}", kind(other))),
    }
}

/// `%s`, `%v`, `%d` and `%q`, with an optional width; more than that, nobody uses on a command line.
fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let left = letters.next_if_eq(&'-').is_some();
        let mut width = 0_usize;
        while let Some(digit) = letters.peek().and_then(|letter| letter.to_digit(10)) {
            width = (width * 10 + digit as usize).min(1000);
            letters.next();
        }
        let mut value = || values.next().ok_or_else(|| "template: \"printf\" has too few values".to_owned());
        let text = match letters.next() {
            Some('%') => "%".to_owned(),
            Some('s' | 'v' | 'd') => show(value()?),
            Some('q') => Value::from(show(value()?)).to_string(),
            other => return Err(format!("template: \"printf\" does not know %{}", other.unwrap_or(' '))),
        };
        match left {
            true => out.push_str(&format!("{text:<width$}")),
            false => out.push_str(&format!("{text:>width$}")),
        }
    }
    Ok(out)
}

fn elements(value: Value) -> Result<Vec<(Value, Value)>, String> {
    match value {
        Value::Array(list) => Ok(list.into_iter().enumerate().map(|(key, value)| (Value::from(key), value)).collect()),
        Value::Object(fields) => Ok(fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect()),
        Value::Null => Ok(Vec::new()),
        other => Err(format!("template: cannot range over {}", kind(&other))),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Writes a value as Go prints it.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(list) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let mut pairs: Vec<String> = fields.iter().map(|(key, value)| format!("{key}:{}", show(value))).collect();
            pairs.sort_unstable();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
