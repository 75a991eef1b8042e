//! Signatures that are understood and signatures that are refused.

use syn::parse_quote;

use super::*;
use crate::{binding::MODEL, model::Binding};

fn mistakes(item: ItemFn) -> Vec<String> {
    let errors = worker_function(item).expect_err("it is refused");
    errors.into_iter().map(|error| error.to_string()).collect()
}

fn the_mistake(item: ItemFn) -> String {
    let mut all = mistakes(item);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn understands_models_and_other_extractors() {
    let function = worker_function(parse_quote! {
        async fn f(
            ctx: gen_worker::ActionContext,
            Prompt { text, .. }: Prompt,
            #[model(payload = "model_ref")] unet: OrtModel,
            #[model(deployment = "vae")] vae: ModelArtifacts,
            State(db): State<Db>,
        ) -> Result<Image, WorkerError> { body() }
    })
    .unwrap();
    assert_eq!(function.payload, parse_quote!(Prompt));
    let found: Vec<_> = function.extractors.iter().map(|e| (e.name.as_str(), &e.binding)).collect();
    let payload = Some(Binding::Payload("model_ref".into()));
    let deployment = Some(Binding::Deployment("vae".into()));
    assert_eq!(found, [("unet", &payload), ("vae", &deployment), ("State (db)", &None)]);
    assert!(!function.item.to_token_stream().to_string().contains("# [model"));
}

#[test]
fn tells_the_return_types_apart() {
    let table: [(ReturnType, Returns); 5] = [
        (parse_quote!(-> Result<O, E>), Returns::Value),
        (parse_quote!(-> std::io::Result<O>), Returns::Value),
        (parse_quote!(-> impl Stream<Item = Result<O, E>>), Returns::Stream),
        (parse_quote!(-> impl Send + futures_util::Stream<Item = Result<O, E>>), Returns::Stream),
        (parse_quote!(-> Result<impl Stream<Item = Result<O, E>>, E>), Returns::ResultOfStream),
    ];
    for (output, expected) in table {
        let function = worker_function(parse_quote!(fn f(c: ActionContext, p: P) #output {})).unwrap();
        assert_eq!(function.returns, expected, "{}", output.to_token_stream());
    }
}

#[test]
fn refuses_other_return_types() {
    for output in [
        parse_quote!(-> O),
        parse_quote!(-> Option<O>),
        parse_quote!(-> impl Iterator<Item = O>),
        parse_quote!(-> Result<impl Serialize, E>),
        parse_quote!(-> (O, E)),
    ] {
        let output: ReturnType = output;
        let text = the_mistake(parse_quote!(fn f(c: ActionContext, p: P) #output {}));
        assert_eq!(text, RETURNS);
    }
    let text = the_mistake(parse_quote!(
        fn f(c: ActionContext, p: P) {}
    ));
    assert!(text.starts_with("the return type is missing"), "{text}");
}

#[test]
fn refuses_what_cannot_be_called_by_name_alone() {
    let table: [(ItemFn, &str); 7] = [
        (
            parse_quote!(
                fn f<T>(c: ActionContext, p: T) -> Result<O, E> {}
            ),
            "generics",
        ),
        (
            parse_quote!(
                fn f<'a>(c: ActionContext, p: P) -> Result<O, E> {}
            ),
            "lifetimes",
        ),
        (
            parse_quote!(
                fn f(c: ActionContext, p: P) -> Result<O, E>
                where
                    P: Copy,
                {
                }
            ),
            "where",
        ),
        (
            parse_quote!(
                const fn f(c: ActionContext, p: P) -> Result<O, E> {}
            ),
            "const",
        ),
        (
            parse_quote!(
                unsafe fn f(c: ActionContext, p: P) -> Result<O, E> {}
            ),
            "unsafe",
        ),
        (
            parse_quote!(
                extern "C" fn f(c: ActionContext, p: P) -> Result<O, E> {}
            ),
            "extern",
        ),
        (
            parse_quote!(
                fn f(&self, c: ActionContext, p: P) -> Result<O, E> {}
            ),
            "State<T>",
        ),
    ];
    for (item, word) in table {
        let text = the_mistake(item);
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn wants_a_context_then_a_payload_both_by_value() {
    let table: [(ItemFn, &str); 7] = [
        (
            parse_quote!(
                fn f() -> Result<O, E> {}
            ),
            CONTEXT,
        ),
        (
            parse_quote!(
                fn f(p: P) -> Result<O, E> {}
            ),
            CONTEXT,
        ),
        (
            parse_quote!(
                fn f(#[model(payload = "m")] c: ActionContext, p: P) -> Result<O, E> {}
            ),
            "models come last",
        ),
        (
            parse_quote!(
                fn f(c: &ActionContext, p: P) -> Result<O, E> {}
            ),
            "by value",
        ),
        (
            parse_quote!(
                fn f(c: ActionContext) -> Result<O, E> {}
            ),
            PAYLOAD,
        ),
        (
            parse_quote!(
                fn f(c: ActionContext, p: &P) -> Result<O, E> {}
            ),
            "remove the `&`",
        ),
        (
            parse_quote!(
                fn f(c: ActionContext, p: impl Read) -> Result<O, E> {}
            ),
            "name it",
        ),
    ];
    for (item, hint) in table {
        let text = the_mistake(item);
        assert!(text.contains(hint), "{text}");
    }
}

#[test]
fn a_model_has_a_name_and_one_source() {
    let table: [(FnArg, &str); 9] = [
        (parse_quote!(#[model] m: M), MODEL),
        (parse_quote!(#[model()] m: M), MODEL),
        (parse_quote!(#[model(payload)] m: M), MODEL),
        (parse_quote!(#[model(payload = 7)] m: M), MODEL),
        (parse_quote!(#[model(payload = "")] m: M), "must not be empty"),
        (parse_quote!(#[model(payloads = "a")] m: M), "did you mean `payload`?"),
        (parse_quote!(#[model(payload = "a", deployment = "b")] m: M), "one source"),
        (parse_quote!(#[model(payload = "a")] #[model(payload = "b")] m: M), "remove this one"),
        (parse_quote!(#[model(payload = "a")] M(m): M), "by name"),
    ];
    for (parameter, hint) in table {
        let text = the_mistake(parse_quote!(fn f(c: ActionContext, p: P, #parameter) -> Result<O, E> {}));
        assert!(text.contains(hint), "{text}");
    }
    let before_payload = parse_quote!(
        fn f(c: ActionContext, #[model(payload = "a")] m: M) -> Result<O, E> {}
    );
    assert!(the_mistake(before_payload).contains("models come after"));
}

#[test]
fn all_mistakes_are_shown_at_once() {
    let all = mistakes(parse_quote!(
        unsafe fn f<T>(p: T) {}
    ));
    assert_eq!(all.len(), 4, "{all:?}");
}
