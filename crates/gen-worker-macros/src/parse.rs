//! A function's signature, understood or refused with a span and what to write instead.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{
    Error, FnArg, GenericArgument, Ident, ItemFn, Pat, PatType, Path, PathArguments, Result, ReturnType,
    Signature, Type, TypeParamBound, TypePath,
};

use crate::{
    binding::{binding, is_model},
    model::{Binding, Extractor, Kind, Returns, WorkerFunction},
};

const CONTEXT: &str = "the first parameter is the context: `ctx: ActionContext`";
const PAYLOAD: &str = "the second parameter is the payload: `input: T`, where `T` derives `serde::Deserialize` and \
    `schemars::JsonSchema`, or `input: serde_json::Value`";
const RETURNS: &str = "a worker function returns `Result<T, WorkerError>`, or deltas as \
    `impl Stream<Item = Result<T, WorkerError>>`, also in a `Result`";

const SOCKET: &str = "the second parameter is the session's socket: `socket: RealtimeSocket`";
const SESSION: &str =
    "a realtime handler returns `Result<(), WorkerError>`: what it has to say goes through its socket";

/// Understands a function of that kind.
///
/// # Errors
/// Every mistake in its signature.
pub(crate) fn item(kind: Kind, item: ItemFn) -> Result<WorkerFunction> {
    match kind {
        Kind::Function => worker_function(item),
        Kind::Websocket => worker_websocket(item),
    }
}

fn worker_websocket(item: ItemFn) -> Result<WorkerFunction> {
    let mut mistakes = Mistakes::default();
    mistakes.keep(qualifiers(&item.sig, "a realtime handler"));
    mistakes.keep(session(&item.sig));
    let parameters = mistakes.keep(session_parameters(&item.sig));
    mistakes.into_result()?;
    let (payload, extractors) = parameters.expect("what is not there was a mistake");
    let (kind, returns) = (Kind::Websocket, Returns::Value);
    Ok(WorkerFunction { kind, item: without_model_attributes(item), payload, extractors, returns })
}

/// A realtime handler is async and returns nothing.
fn session(signature: &Signature) -> Result<()> {
    if signature.asyncness.is_none() {
        let hint = "a realtime handler waits for frames: make it an `async fn`";
        return Err(Error::new_spanned(signature.fn_token, hint));
    }
    let ReturnType::Type(_, ty) = &signature.output else {
        return Err(Error::new(signature.ident.span(), SESSION));
    };
    match ok_type(ty) {
        Some(Type::Tuple(nothing)) if nothing.elems.is_empty() => Ok(()),
        _ => Err(Error::new_spanned(ty, SESSION)),
    }
}

/// The `T` of a `Result<T, …>`.
pub(crate) fn ok_type(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else {
        return None;
    };
    let last = path.path.segments.last().filter(|last| last.ident == "Result")?;
    match &last.arguments {
        PathArguments::AngleBracketed(arguments) => match arguments.args.first()? {
            GenericArgument::Type(ok) => Some(ok),
            _ => None,
        },
        _ => None,
    }
}

fn session_parameters(signature: &Signature) -> Result<(Type, Vec<Extractor>)> {
    let (socket, extractors) = parameters(signature, SOCKET)?;
    if last_segment(&socket).is_none_or(|name| name != "RealtimeSocket") {
        return Err(Error::new_spanned(socket, SOCKET));
    }
    match extractors.iter().find(|extractor| matches!(extractor.binding, Some(Binding::Payload(_)))) {
        None => Ok((socket, extractors)),
        Some(extractor) => Err(Error::new_spanned(
            &extractor.ty,
            "a realtime session has no payload that could name this model: write `#[model(deployment = \"key\")]`",
        )),
    }
}

/// Understands a function that takes a payload.
///
/// # Errors
/// Every mistake in its signature.
fn worker_function(item: ItemFn) -> Result<WorkerFunction> {
    let mut mistakes = Mistakes::default();
    mistakes.keep(qualifiers(&item.sig, "a worker function"));
    let returns = mistakes.keep(returns(&item.sig));
    let parameters = mistakes.keep(parameters(&item.sig, PAYLOAD));
    mistakes.into_result()?;
    let (payload, extractors) = parameters.expect("what is not there was a mistake");
    Ok(WorkerFunction {
        kind: Kind::Function,
        item: without_model_attributes(item),
        payload,
        extractors,
        returns: returns.expect("what is not there was a mistake"),
    })
}

/// The item without the attributes that only this macro understands.
pub(crate) fn without_model_attributes(mut item: ItemFn) -> ItemFn {
    for input in &mut item.sig.inputs {
        if let FnArg::Typed(input) = input {
            input.attrs.retain(|attribute| !is_model(attribute));
        }
    }
    item
}

/// Mistakes found so far, so that all are shown at once.
#[derive(Default)]
pub(crate) struct Mistakes(Option<Error>);

impl Mistakes {
    pub(crate) fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        match (result, &mut self.0) {
            (Ok(value), _) => return Some(value),
            (Err(error), Some(errors)) => errors.combine(error),
            (Err(error), none) => *none = Some(error),
        }
        None
    }

    pub(crate) fn into_result(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// What no function that the worker calls may have; `noun` is what it is called.
pub(crate) fn qualifiers(signature: &Signature, noun: &str) -> Result<()> {
    let mut mistakes = Mistakes::default();
    let mut refuse = |token: Option<TokenStream>, hint: &str| {
        if let Some(token) = token {
            mistakes.keep::<()>(Err(Error::new_spanned(token, format!("{noun} {hint}"))));
        }
    };
    let generics = &signature.generics;
    refuse(
        (!generics.params.is_empty()).then(|| generics.to_token_stream()),
        "has no generics and no lifetimes: each type in it is known when it is registered; write one function for each type",
    );
    refuse(
        generics.where_clause.as_ref().map(|clause| clause.to_token_stream()),
        "has no `where` clause; remove it",
    );
    refuse(signature.constness.map(|token| token.to_token_stream()), "is called at run time; remove `const`");
    refuse(
        signature.unsafety.map(|token| token.to_token_stream()),
        "is called by the runtime, which can promise nothing; remove `unsafe`",
    );
    refuse(signature.abi.as_ref().map(|abi| abi.to_token_stream()), "is a Rust function; remove `extern`");
    mistakes.into_result()
}

/// `second` says what the parameter after the context is.
fn parameters(signature: &Signature, second: &str) -> Result<(Type, Vec<Extractor>)> {
    let typed = signature.inputs.iter().map(typed).collect::<Result<Vec<_>>>()?;
    let mut rest = typed.into_iter();
    let context = rest.next().ok_or_else(|| Error::new(signature.ident.span(), CONTEXT))?;
    check_context(context)?;
    let payload = rest.next().ok_or_else(|| Error::new(signature.ident.span(), second))?;
    if payload.attrs.iter().any(is_model) {
        return Err(Error::new_spanned(payload, format!("{second}; models come after it")));
    }
    owned(&payload.ty)?;
    let mut mistakes = Mistakes::default();
    let extractors = rest.filter_map(|parameter| mistakes.keep(extractor(parameter))).collect();
    mistakes.into_result()?;
    Ok(((*payload.ty).clone(), extractors))
}

fn typed(input: &FnArg) -> Result<&PatType> {
    match input {
        FnArg::Typed(parameter) => Ok(parameter),
        FnArg::Receiver(receiver) => Err(Error::new_spanned(
            receiver,
            "a worker function is a free function without `self`; take what it shares as a parameter \
             `state: State<T>`",
        )),
    }
}

fn check_context(parameter: &PatType) -> Result<()> {
    let is_context = |ty: &Type| last_segment(ty).is_some_and(|name| name == "ActionContext");
    if parameter.attrs.iter().any(is_model) {
        return Err(Error::new_spanned(parameter, format!("{CONTEXT}; models come last")));
    }
    match &*parameter.ty {
        ty if is_context(ty) => Ok(()),
        Type::Reference(reference) if is_context(&reference.elem) => Err(Error::new_spanned(
            reference,
            "the context is taken by value: `ctx: ActionContext`; its clones are the same context",
        )),
        other => Err(Error::new_spanned(other, CONTEXT)),
    }
}

fn owned(ty: &Type) -> Result<()> {
    match ty {
        Type::Reference(reference) => {
            Err(Error::new_spanned(reference, "a parameter is taken by value; remove the `&`"))
        }
        Type::ImplTrait(opaque) => Err(Error::new_spanned(
            opaque,
            "a parameter has one type that is known when the function is registered; name it",
        )),
        _ => Ok(()),
    }
}

fn extractor(parameter: &PatType) -> Result<Extractor> {
    owned(&parameter.ty)?;
    let binding = binding(&parameter.attrs)?;
    let name = match &*parameter.pat {
        Pat::Ident(pattern) if pattern.subpat.is_none() => pattern.ident.to_string(),
        pattern if binding.is_some() => {
            return Err(Error::new_spanned(
                pattern,
                "a model's parameter is told to the scheduler by name: write `name: Type`",
            ));
        }
        pattern => pattern.to_token_stream().to_string(),
    };
    Ok(Extractor { name: name.trim_start_matches("r#").to_owned(), ty: (*parameter.ty).clone(), binding })
}

fn returns(signature: &Signature) -> Result<Returns> {
    let ReturnType::Type(_, ty) = &signature.output else {
        return Err(Error::new(signature.ident.span(), format!("the return type is missing: {RETURNS}")));
    };
    match &**ty {
        ty if is_stream(ty) => Ok(Returns::Stream),
        Type::Path(path) => result(path),
        other => Err(Error::new_spanned(other, RETURNS)),
    }
}

fn result(ty: &TypePath) -> Result<Returns> {
    let last = ty.path.segments.last().filter(|last| last.ident == "Result");
    let last = last.ok_or_else(|| Error::new_spanned(ty, RETURNS))?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return Ok(Returns::Value);
    };
    match arguments.args.first() {
        Some(GenericArgument::Type(ok)) if is_stream(ok) => Ok(Returns::ResultOfStream),
        Some(GenericArgument::Type(ok @ Type::ImplTrait(_))) => Err(Error::new_spanned(ok, RETURNS)),
        _ => Ok(Returns::Value),
    }
}

fn is_stream(ty: &Type) -> bool {
    let Type::ImplTrait(opaque) = ty else {
        return false;
    };
    opaque.bounds.iter().any(|bound| match bound {
        TypeParamBound::Trait(bound) => last_ident(&bound.path).is_some_and(|name| name == "Stream"),
        _ => false,
    })
}

pub(crate) fn last_segment(ty: &Type) -> Option<&Ident> {
    match ty {
        Type::Path(path) => last_ident(&path.path),
        Type::Group(group) => last_segment(&group.elem),
        Type::Paren(paren) => last_segment(&paren.elem),
        _ => None,
    }
}

fn last_ident(path: &Path) -> Option<&Ident> {
    path.segments.last().map(|segment| &segment.ident)
}

#[cfg(test)]
mod tests;
