//! What a topic may be called. The one rule, used at the doors (for its error) and by the state machine (for its verdict).

use crate::limits::TOPIC_NAME_BYTES_MAX;

/// Why a topic can't be called that. Nothing happened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicNameError {
    /// No name at all.
    #[error("a topic's name is empty; it takes 1 to {TOPIC_NAME_BYTES_MAX} characters of a-z A-Z 0-9 . _ -")]
    Empty,
    /// Too long.
    #[error(
        "topic name `{shown}...` is {len} bytes; at most {TOPIC_NAME_BYTES_MAX} characters of a-z A-Z 0-9 . _ - are allowed"
    )]
    TooLong {
        /// How the name starts.
        shown: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character outside the alphabet.
    #[error(
        "topic name `{name}` holds {character:?}; it takes 1 to {TOPIC_NAME_BYTES_MAX} characters of a-z A-Z 0-9 . _ -"
    )]
    IllegalCharacter {
        /// The name, control characters escaped.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// `.` or `..`, which name directories.
    #[error("topic name `{name}` stands for a directory; add another character")]
    Directory {
        /// The name.
        name: String,
    },
}

/// Checks that a topic can have this name: 1 to `TOPIC_NAME_BYTES_MAX` characters of `a-z A-Z 0-9 . _ -`, neither `.` nor
/// `..`, so that it can stand in paths, metric labels and command lines as it is.
///
/// # Errors
/// [`TopicNameError`], with the name, the rule and the limit.
pub fn validate_topic_name(name: &str) -> Result<(), TopicNameError> {
    if name.is_empty() {
        return Err(TopicNameError::Empty);
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        let shown: String = name.chars().take(40).flat_map(char::escape_debug).collect();
        return Err(TopicNameError::TooLong { shown, len: name.len() });
    }
    if let Some(character) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Err(TopicNameError::IllegalCharacter { name: name.escape_debug().to_string(), character });
    }
    if name == "." || name == ".." {
        return Err(TopicNameError::Directory { name: name.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_alphabet_are_taken() {
        for name in ["a", "access.log", "A-Z_0.9", "...", "-", &"x".repeat(TOPIC_NAME_BYTES_MAX)] {
            assert_eq!(validate_topic_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_value_rule_and_limit() {
        let text = |name: &str| validate_topic_name(name).unwrap_err().to_string();
        assert!(text("").contains("1 to 200"));
        assert_eq!(text("a/b"), "topic name `a/b` holds '/'; it takes 1 to 200 characters of a-z A-Z 0-9 . _ -");
        assert!(text("späße").contains('ä'));
        assert!(text("line\nbreak").contains("`line\\nbreak` holds '\\n'"));
        assert!(text(&"x".repeat(201)).contains("is 201 bytes; at most 200"));
        assert!(text(".").contains("`.` stands for a directory"));
        assert!(text("..").contains("`..` stands for a directory"));
    }
}
