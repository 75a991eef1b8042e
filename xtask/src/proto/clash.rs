//! Which changes of a contract would be misread by a peer that has the older one.

use protox::prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, MessageDescriptor};

/// Every reuse or unreserved loss of a field between an older and a newer contract, one sentence each.
pub(crate) fn between(old: &DescriptorPool, new: &DescriptorPool) -> Vec<String> {
    let mut clashes = Vec::new();
    for message in old.all_messages() {
        match new.get_message_by_name(message.full_name()) {
            Some(newer) => in_message(&message, &newer, &mut clashes),
            // The field that the map belonged to says so.
            None if message.is_map_entry() => {}
            None => clashes.push(format!("{} is gone", message.full_name())),
        }
    }
    clashes
}

fn in_message(old: &MessageDescriptor, new: &MessageDescriptor, clashes: &mut Vec<String>) {
    let mut clash = |what: String| clashes.push(format!("{} {what}", old.full_name()));
    for was in old.fields() {
        let (number, name) = (was.number(), was.name());
        match new.get_field(number) {
            Some(is) if says(&is) == says(&was) => {}
            Some(is) => clash(format!("{number} was `{}`, is `{}`", says(&was), says(&is))),
            None if reserves(new, number) => {}
            None => clash(format!("{number} `{}` is dropped and not reserved", says(&was))),
        }
        if let Some(is) = new.get_field_by_name(name).filter(|is| is.number() != number) {
            clash(format!("`{name}` was {number}, is {}", is.number()));
        }
    }
    for is in new.fields().filter(|is| reserves(old, is.number())) {
        clash(format!("{} was reserved, is `{}`", is.number(), says(&is)));
    }
}

/// All that a reader depends on: type, multiplicity, name, and the oneof it shares.
fn says(field: &FieldDescriptor) -> String {
    let oneof = field.containing_oneof().map(|oneof| format!("oneof {} ", oneof.name()));
    let repeated = if field.cardinality() == Cardinality::Repeated { "repeated " } else { "" };
    format!("{}{repeated}{:?} {}", oneof.unwrap_or_default(), field.kind(), field.name())
}

fn reserves(message: &MessageDescriptor, number: u32) -> bool {
    message.reserved_ranges().any(|range| range.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(body: &str) -> DescriptorPool {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("p.proto"), format!("syntax = \"proto3\"; package p; {body}"))
            .unwrap();
        let files = protox::compile(["p.proto"], [dir.path()]).unwrap();
        DescriptorPool::from_file_descriptor_set(files).unwrap()
    }

    #[track_caller]
    fn check(old: &str, new: &str, clashes: &[&str]) {
        assert_eq!(between(&contract(old), &contract(new)), clashes);
    }

    #[test]
    fn additions_and_reservations_are_fine() {
        check(
            "message M { string a = 1; int64 b = 2; map<string, N> c = 3; } message N {}",
            "message M { string a = 1; reserved 2; map<string, N> c = 3; bytes d = 4; } message N {} message O {}",
            &[],
        );
    }

    #[test]
    fn another_type_at_the_same_number_is_a_clash() {
        check(
            "message M { string a = 1; }",
            "message M { bytes a = 1; }",
            &["p.M 1 was `string a`, is `bytes a`"],
        );
        check(
            "message M { string a = 1; }",
            "message M { repeated string a = 1; }",
            &["p.M 1 was `string a`, is `repeated string a`"],
        );
    }

    #[test]
    fn another_map_value_is_a_clash() {
        let clashes = between(
            &contract("message M { map<string, int32> a = 1; }"),
            &contract("message M { map<string, string> a = 1; }"),
        );
        assert_eq!(clashes.len(), 1, "{clashes:?}");
    }

    #[test]
    fn another_name_at_the_same_number_is_a_clash() {
        check(
            "message M { string a = 1; }",
            "message M { string b = 1; }",
            &["p.M 1 was `string a`, is `string b`"],
        );
    }

    #[test]
    fn the_same_name_at_another_number_is_a_clash() {
        check(
            "message M { string a = 1; }",
            "message M { reserved 1; string a = 2; }",
            &["p.M `a` was 1, is 2"],
        );
    }

    #[test]
    fn a_field_that_leaves_a_oneof_is_a_clash() {
        check(
            "message M { oneof o { string a = 1; } }",
            "message M { string a = 1; }",
            &["p.M 1 was `oneof o string a`, is `string a`"],
        );
    }

    #[test]
    fn what_is_lost_or_raised_from_the_dead_is_a_clash() {
        check(
            "message M { string a = 1; reserved 2; } message N {}",
            "message M { string b = 2; }",
            &[
                "p.M 1 `string a` is dropped and not reserved",
                "p.M 2 was reserved, is `string b`",
                "p.N is gone",
            ],
        );
    }

    #[test]
    fn each_clash_is_listed() {
        check(
            "message M { string a = 1; string b = 2; }",
            "message M { string b = 1; string a = 2; }",
            &[
                "p.M 1 was `string a`, is `string b`",
                "p.M `a` was 1, is 2",
                "p.M 2 was `string b`, is `string a`",
                "p.M `b` was 2, is 1",
            ],
        );
    }
}
