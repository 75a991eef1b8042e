//! The grammar as a table: words on one side, what they mean or what is wrong with them on the other.

use serde_json::json;

use super::*;

/// A payload with one field of each sort.
fn schema() -> Value {
    let asset = json!({"type": "object", "x-asset": true, "properties": {"ref": {"type": "string"}}});
    json!({
        "$ref": "#/$defs/In",
        "$defs": {
            "Asset": asset,
            "Size": {"type": "object", "properties": {
                "width": {"type": "integer"},
                "unit": {"type": "string", "enum": ["px", "mm"]},
            }},
            "In": {
                "type": "object",
                "required": ["steps", "prompt"],
                "properties": {
                    "prompt": {"type": "string"},
                    "steps": {"type": "integer", "minimum": 1, "maximum": 50},
                    "guidance": {"type": "number"},
                    "hd": {"type": "boolean"},
                    "size": {"$ref": "#/$defs/Size"},
                    "image": {"anyOf": [{"$ref": "#/$defs/Asset"}, {"type": "null"}]},
                    "images": {"type": "array", "items": {"$ref": "#/$defs/Asset"}},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    })
}

fn speak_to(schema: &Value, base: Value, words: &[&str]) -> Result<Spoken, Vec<String>> {
    let Value::Object(base) = base else { panic!("a payload is an object") };
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let said = |errors: Vec<WordError>| errors.iter().map(ToString::to_string).collect();
    speak(schema, base, &words).map_err(said)
}

/// With the two required fields given before, unless the words give them.
#[track_caller]
fn check(words: &[&str], expected: Value) {
    let base = json!({"prompt": "p", "steps": 1});
    let spoken = speak_to(&schema(), base, words).unwrap();
    let mut all = json!({"prompt": "p", "steps": 1});
    let given = expected.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(given);
    assert_eq!((Value::Object(spoken.payload), spoken.files), (all, vec![]));
}

#[track_caller]
fn check_file(words: &[&str], expected: &[(&str, &str, Content)]) {
    let spoken = speak_to(&schema(), json!({"prompt": "p", "steps": 1}), words).unwrap();
    let files: Vec<_> =
        spoken.files.iter().map(|file| (&*file.place, file.path.to_str().unwrap(), file.content)).collect();
    assert_eq!(files, expected);
    let mut spoken = spoken;
    for (place, ..) in expected {
        assert_eq!(spoken.payload_mut(place), Some(&mut Value::Null));
    }
}

#[track_caller]
fn refused(words: &[&str], expected: &[&str]) {
    assert_eq!(speak_to(&schema(), json!({"prompt": "p", "steps": 1}), words).unwrap_err(), expected);
}

#[test]
fn a_value_has_the_type_of_its_field() {
    check(&["steps=20"], json!({"steps": 20}));
    check(&["guidance=7"], json!({"guidance": 7}));
    check(&["guidance=7.5", "hd=true"], json!({"guidance": 7.5, "hd": true}));
    check(&["prompt=20"], json!({"prompt": "20"}));
    check(&["prompt="], json!({"prompt": ""}));
    check(&["prompt=a=b:=c@d"], json!({"prompt": "a=b:=c@d"}));
    check(&["image=https://a.example/b"], json!({"image": {"ref": "https://a.example/b"}}));
}

#[test]
fn json_is_taken_as_it_is() {
    check(&[r#"tags:=["a", "b"]"#], json!({"tags": ["a", "b"]}));
    check(&["steps:=3", "image:=null"], json!({"steps": 3, "image": null}));
    check(&[r#"output_upload:={"put_url": "x"}"#], json!({"output_upload": {"put_url": "x"}}));
}

#[test]
fn dots_lead_into_objects() {
    check(&["size.width=3", "size.unit=mm"], json!({"size": {"width": 3, "unit": "mm"}}));
}

#[test]
fn words_go_over_the_payload() {
    let base = json!({"prompt": "p", "steps": 1, "size": {"width": 1, "unit": "px"}});
    let spoken = speak_to(&schema(), base, &["size.width=2", "steps=9"]).unwrap();
    let expected = json!({"prompt": "p", "steps": 9, "size": {"width": 2, "unit": "px"}});
    assert_eq!(Value::Object(spoken.payload), expected);
}

#[test]
fn a_bare_word_is_the_first_text_that_must_be_there() {
    check(&["a cat"], json!({"prompt": "a cat"}));
    check(&["a cat = nice"], json!({"prompt": "a cat = nice"}));
    check(&["https://a.example/?b=c"], json!({"prompt": "https://a.example/?b=c"}));
    refused(&["a cat", "a dog"], &["`prompt` is given twice"]);
    refused(&["a cat", "prompt=a dog"], &["`prompt` is given twice"]);
    let number = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let said = speak_to(&number, json!({"n": 1}), &["cat"]).unwrap_err();
    assert_eq!(said, ["`cat` has no field: write `FIELD=cat`; there are `n`"]);
}

#[test]
fn a_file_is_stored_or_read_as_its_field_says() {
    check_file(&["image@cat.png"], &[("/image", "cat.png", Content::Asset)]);
    check_file(&["prompt@p.txt"], &[("/prompt", "p.txt", Content::Text)]);
    check_file(&["tags@t.json"], &[("/tags", "t.json", Content::Json)]);
    check_file(&["size.width@w.json"], &[("/size/width", "w.json", Content::Json)]);
    check_file(
        &["images@a.png", "images@b@2.png"],
        &[("/images/0", "a.png", Content::Asset), ("/images/1", "b@2.png", Content::Asset)],
    );
    refused(&["image@a.png", "image@b.png"], &["`image` is given twice"]);
}

#[test]
fn an_unknown_field_is_refused_with_the_nearest_and_all_names() {
    let all = "; there are `guidance`, `hd`, `image`, `images`, `prompt`, `size`, `steps`, `tags`";
    refused(&["promt=x"], &[&format!("unknown field `promt`: did you mean `prompt`?{all}")]);
    refused(&["zz@x"], &[&format!("unknown field `zz`{all}")]);
    let size = "; there are `unit`, `width`";
    refused(&["size.widht=1"], &[&format!("unknown field `size.widht`: did you mean `width`?{size}")]);
    refused(&[r#"size:={"w": 1}"#], &[&format!("unknown field `size.w`: did you mean `width`?{size}")]);
    let base = json!({"prompt": "", "steps": 1, "step": 2, "output_upload": {"put_url": "x"}});
    let said = speak_to(&schema(), base, &[]).unwrap_err();
    assert_eq!(said, [format!("unknown field `step`: did you mean `steps`?{all}")]);
    let nothing = json!({"type": "object"});
    let said = speak_to(&nothing, json!({}), &["a=1"]).unwrap_err();
    assert_eq!(said, ["unknown field `a`; there are no fields"]);
}

#[test]
fn every_mistake_is_said_at_once() {
    refused(
        &["steps=many", "hd=1", "tags=a", "size:={", "size.unit=m", "steps.x=1"],
        &[
            "`steps` takes a whole number from 1 to 50, not `many`",
            "`hd` takes `true` or `false`, not `1`",
            "`tags` takes a list: write it as JSON, `tags:=…`, or name a file that holds it, `tags@PATH`",
            "`size` is no JSON: EOF while parsing an object at line 1 column 1",
            "`size.unit` takes `px` or `mm`, not `m`",
            "unknown field `steps.x`; there are no fields",
        ],
    );
    let said = speak_to(&schema(), json!({}), &[]).unwrap_err();
    let expected =
        ["`steps` is missing: it takes a whole number from 1 to 50", "`prompt` is missing: it takes a text"];
    assert_eq!(said, expected);
    let said = speak_to(&schema(), json!({"size": 1, "prompt": "", "steps": 1}), &["size.width=1"]);
    assert_eq!(said.unwrap_err(), ["`size.width` lies within `size`, which is no object"]);
}

#[test]
fn an_untyped_payload_takes_any_field() {
    let spoken = speak_to(&json!({}), json!({}), &["a=1", "b:=1", "c.d=x"]).unwrap();
    assert_eq!(Value::Object(spoken.payload), json!({"a": "1", "b": 1, "c": {"d": "x"}}));
}
