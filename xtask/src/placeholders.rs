//! Templates with `@PLACEHOLDERS@`, such as the units in `systemd/`.

use anyhow::{Result, bail, ensure};

/// Replaces each `@NAME@` in a template by its value. The names in `required` have to be
/// there, and no other may be: people edit the templates, and a typing mistake must not
/// reach a server.
pub fn fill(
    file: &str,
    template: &str,
    values: &[(&str, &str)],
    required: &[&str],
) -> Result<String> {
    for name in required {
        ensure!(
            template.contains(&format!("@{name}@")),
            "{file} has no @{name}@, and it needs that value"
        );
    }
    let fill =
        |text: String, (name, value): &(&str, &str)| text.replace(&format!("@{name}@"), value);
    let text = values.iter().fold(template.to_owned(), fill);
    if let Some(name) = left_over(&text) {
        let known: Vec<String> = values.iter().map(|(name, _)| format!("@{name}@")).collect();
        bail!(
            "{file} has @{name}, which is not a placeholder\nhint: these are: {}",
            known.join(" ")
        );
    }
    Ok(text)
}

/// A word in capital letters after an `@`. Other uses of `@`, as in `app@.service`, are
/// no placeholders.
fn left_over(text: &str) -> Option<&str> {
    text.split('@').skip(1).find_map(|rest| {
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        (end > 1).then_some(&rest[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &[(&str, &str)] = &[("DIRECTORY", "/srv/app"), ("LISTEN", "0.0.0.0:80")];

    #[test]
    fn every_placeholder_is_filled() {
        let unit =
            "Exec=@DIRECTORY@/run/%p-%i\nSee=app@.service @system-service\nListen=@LISTEN@\n";
        assert_eq!(
            fill("unit", unit, VALUES, &["LISTEN"]).unwrap(),
            "Exec=/srv/app/run/%p-%i\nSee=app@.service @system-service\nListen=0.0.0.0:80\n"
        );
    }

    #[test]
    fn a_missing_or_unknown_placeholder_is_named() {
        let error = |unit| {
            let result = fill("unit", unit, VALUES, &["LISTEN"]);
            result.unwrap_err().to_string()
        };
        assert!(error("Listen=80").starts_with("unit has no @LISTEN@"));
        assert!(error("@LISTEN@ @PORT@").starts_with("unit has @PORT,"));
        assert!(error("@LISTEN@ @DIRECTORY/run").starts_with("unit has @DIRECTORY,"));
    }
}
