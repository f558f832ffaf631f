//! The overview of `sharp --help`: the commands by what a person wants to do.

use clap::Command;

/// The commands of each group, in the order of the overview.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Run a model", &["generate", "chat", "serve"]),
    ("Compress a model", &["import", "analyze", "plan", "export", "quantize"]),
    ("Measure", &["evaluate", "benchmark"]),
    ("Inspect", &["inspect", "report", "doctor"]),
    ("Tools", &["synth", "completions", "man"]),
];

/// Lists the commands of the program by group in its help.
pub(crate) fn grouped(program: Command) -> Command {
    let mut list = String::new();
    for (title, names) in GROUPS {
        list.push_str(&format!("{title}:\n"));
        for name in names {
            let command = program.find_subcommand(name);
            let about = command.and_then(Command::get_about).map(ToString::to_string).unwrap_or_default();
            let aliases: Vec<&str> = command.into_iter().flat_map(Command::get_visible_aliases).collect();
            let also = if aliases.is_empty() { String::new() } else { format!(" [{}]", aliases.join(", ")) };
            list.push_str(&format!("  {name:<12} {about}{also}\n"));
        }
        list.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}"
    );
    program.help_template(template).mut_subcommands(with_negative_numbers)
}

/// Takes `-5` after an option for its value: what is wrong with it is then the option's to say.
fn with_negative_numbers(command: Command) -> Command {
    command
        .mut_args(|arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_is_in_one_group_and_shows_an_example() {
        let program = crate::Cli::command();
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        for command in program.get_subcommands() {
            let name = command.get_name();
            assert_eq!(grouped.iter().filter(|other| **other == name).count(), 1, "{name}");
            assert!(command.get_about().is_some(), "{name}");
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains(&format!("sharp {name}")), "{name}: no example in {example:?}");
        }
        assert_eq!(grouped.len(), program.get_subcommands().count());
        let help = super::grouped(program).render_help().to_string();
        assert!(help.contains("Run a model:\n  generate     Generate text"), "{help}");
        assert!(help.contains("[eval]") && help.contains("Example:"), "{help}");
    }
}
