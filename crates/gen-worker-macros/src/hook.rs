//! What is done before the first run and after the last: `#[worker_setup]` and `#[worker_teardown]`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote};
use syn::{Error, FnArg, ItemFn, Result, ReturnType, Type, ext::IdentExt};

use crate::{
    expand::{argument, private},
    parse::{Mistakes, last_segment, ok_type, qualifiers, without_model_attributes},
};

const SET_UP_TAKES: &str = "a set-up takes no parameters: it runs before anything that it could be given; what it makes is what \
    it returns";
const SET_UP_RETURNS: &str = "a set-up returns `Result<T, WorkerError>`: functions take the `T` as `State<T>`; return \
    `Result<(), WorkerError>` if there is nothing to take";
const TEAR_DOWN_TAKES: &str = "a tear-down takes what set-ups made, by value: `value: State<T>`";
const TEAR_DOWN_RETURNS: &str = "a tear-down returns `Result<(), WorkerError>`: nobody takes a value of it";

/// The states that a tear-down may take: as many as `TakesState` is implemented for.
const MOST_STATES: usize = 4;

/// Which attribute stands on the item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Hook {
    /// `#[worker_setup]`
    SetUp,
    /// `#[worker_teardown]`
    TearDown,
}

impl Hook {
    fn attribute(self) -> &'static str {
        match self {
            Self::SetUp => "#[worker_setup]",
            Self::TearDown => "#[worker_teardown]",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::SetUp => "a set-up",
            Self::TearDown => "a tear-down",
        }
    }
}

/// Expands the attribute. As with functions, the item itself is always written out.
pub(crate) fn attribute(hook: Hook, attribute: TokenStream, item: TokenStream) -> TokenStream {
    let parsed = match syn::parse2::<ItemFn>(item.clone()) {
        Ok(parsed) => parsed,
        Err(error) => {
            let text = format!("`{}` stands on a free `fn` with a body", hook.attribute());
            let error = Error::new(error.span(), text).into_compile_error();
            return quote!(#item #error);
        }
    };
    match understand(hook, attribute, &parsed) {
        Ok(()) => write(hook, &parsed),
        Err(error) => {
            let (item, error) = (without_model_attributes(parsed), error.into_compile_error());
            quote!(#item #error)
        }
    }
}

fn understand(hook: Hook, attribute: TokenStream, item: &ItemFn) -> Result<()> {
    let mut mistakes = Mistakes::default();
    if !attribute.is_empty() {
        let text = format!("`{}` has no keys; remove the parentheses", hook.attribute());
        mistakes.keep::<()>(Err(Error::new_spanned(attribute, text)));
    }
    mistakes.keep(qualifiers(&item.sig, hook.noun()));
    mistakes.keep(parameters(hook, item));
    mistakes.keep(returns(hook, item));
    mistakes.into_result()
}

fn parameters(hook: Hook, item: &ItemFn) -> Result<()> {
    let inputs = &item.sig.inputs;
    match hook {
        Hook::SetUp if inputs.is_empty() => Ok(()),
        Hook::SetUp => Err(Error::new_spanned(inputs, SET_UP_TAKES)),
        Hook::TearDown => {
            if let Some(odd) = inputs.iter().find(|input| state(input).is_none()) {
                return Err(Error::new_spanned(odd, TEAR_DOWN_TAKES));
            }
            match inputs.iter().nth(MOST_STATES) {
                None => Ok(()),
                Some(more) => {
                    let text = format!(
                        "a tear-down takes at most {MOST_STATES} states: write another one for the rest"
                    );
                    Err(Error::new_spanned(more, text))
                }
            }
        }
    }
}

/// The type of a parameter that is a `State<T>`.
fn state(input: &FnArg) -> Option<&Type> {
    match input {
        FnArg::Typed(parameter) if last_segment(&parameter.ty).is_some_and(|name| name == "State") => {
            Some(&parameter.ty)
        }
        FnArg::Typed(_) | FnArg::Receiver(_) => None,
    }
}

fn returns(hook: Hook, item: &ItemFn) -> Result<()> {
    let hint = match hook {
        Hook::SetUp => SET_UP_RETURNS,
        Hook::TearDown => TEAR_DOWN_RETURNS,
    };
    let ReturnType::Type(_, ty) = &item.sig.output else {
        return Err(Error::new(item.sig.ident.span(), format!("the return type is missing: {hint}")));
    };
    let is_nothing = |ty: &Type| matches!(ty, Type::Tuple(tuple) if tuple.elems.is_empty());
    match (hook, ok_type(ty)) {
        (Hook::SetUp, Some(Type::ImplTrait(_))) | (_, None) => Err(Error::new_spanned(ty, hint)),
        (Hook::TearDown, Some(ok)) if !is_nothing(ok) => Err(Error::new_spanned(ok, hint)),
        (Hook::SetUp | Hook::TearDown, Some(_)) => Ok(()),
    }
}

fn write(hook: Hook, item: &ItemFn) -> TokenStream {
    let (private, name) = (private(), &item.sig.ident);
    let shown = name.unraw().to_string();
    // A type that cannot be shared, and an error that does not convert, are shown where they stand.
    let span = argument(&item.sig.output, 0);
    let method = match item.sig.asyncness {
        Some(_) => Ident::new("asynchronous", span),
        None => Ident::new("blocking", span),
    };
    let registration = match hook {
        Hook::SetUp => quote! {
            #private::SetUpRegistration { make: || #private::SetUp::#method(#shown, #name) }
        },
        Hook::TearDown => {
            let types = item.sig.inputs.iter().filter_map(state);
            let values: Vec<_> = (0..item.sig.inputs.len())
                .map(|at| format_ident!("state_{at}", span = Span::mixed_site()))
                .collect();
            quote! {
                #private::TearDownRegistration {
                    make: || #private::TearDown::#method(#shown, |(#(#values,)*): (#(#types,)*)| #name(#(#values),*))
                }
            }
        }
    };
    quote! {
        #item

        #private::submit! { #registration }
    }
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    fn mistakes(hook: Hook, item: ItemFn) -> Vec<String> {
        let understood = understand(hook, TokenStream::new(), &item);
        understood.err().into_iter().flatten().map(|error| error.to_string()).collect()
    }

    #[test]
    fn hooks_are_understood() {
        assert!(
            mistakes(
                Hook::SetUp,
                parse_quote!(
                    async fn f() -> Result<Db, WorkerError> {}
                )
            )
            .is_empty()
        );
        assert!(
            mistakes(
                Hook::SetUp,
                parse_quote!(
                    fn f() -> std::io::Result<()> {}
                )
            )
            .is_empty()
        );
        let takes = parse_quote!(
            fn f(State(db): State<Db>, mut c: gen_worker::State<C>) -> Result<(), E> {}
        );
        assert!(mistakes(Hook::TearDown, takes).is_empty());
        assert!(
            mistakes(
                Hook::TearDown,
                parse_quote!(
                    async fn f() -> Result<(), E> {}
                )
            )
            .is_empty()
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_write_instead() {
        let table: [(Hook, ItemFn, &[&str]); 7] = [
            (
                Hook::SetUp,
                parse_quote!(
                    fn f(ctx: ActionContext) -> Result<Db, E> {}
                ),
                &[SET_UP_TAKES],
            ),
            (
                Hook::SetUp,
                parse_quote!(
                    fn f() -> Db {}
                ),
                &[SET_UP_RETURNS],
            ),
            (
                Hook::SetUp,
                parse_quote!(
                    fn f() -> Result<impl Sized, E> {}
                ),
                &[SET_UP_RETURNS],
            ),
            (
                Hook::SetUp,
                parse_quote!(
                    unsafe fn f<T>() -> Result<T, E> {}
                ),
                &["a set-up has no generics", "a set-up is called"],
            ),
            (
                Hook::TearDown,
                parse_quote!(
                    fn f(db: Db) -> Result<(), E> {}
                ),
                &[TEAR_DOWN_TAKES],
            ),
            (
                Hook::TearDown,
                parse_quote!(
                    fn f() -> Result<u8, E> {}
                ),
                &[TEAR_DOWN_RETURNS],
            ),
            (
                Hook::TearDown,
                parse_quote!(
                    fn f(a: State<A>, b: State<B>, c: State<C>, d: State<D>, e: State<E>) -> Result<(), E> {}
                ),
                &["at most 4"],
            ),
        ];
        for (hook, item, expected) in table {
            let found = mistakes(hook, item);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found}");
            }
        }
    }
}
