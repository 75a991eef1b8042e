//! What was understood, as calls of the facade's hidden module.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{
    Error, Ident, ItemFn, Path, PathArguments, ReturnType, Type, ext::IdentExt, parse::Parser,
    spanned::Spanned,
};

use crate::{
    model::{Binding, Extractor, Kind, Returns, WorkerFunction},
    options::{Options, check_name},
    parse,
};

/// Expands `#[worker_function(…)]` and `#[worker_websocket(…)]`. The function itself is always written out, so that a mistake in the attribute does
/// not bring further errors wherever the function is used.
pub(crate) fn attribute(kind: Kind, attribute: TokenStream, item: TokenStream) -> TokenStream {
    let item = match syn::parse2::<ItemFn>(item.clone()) {
        Ok(item) => item,
        Err(error) => {
            let error =
                Error::new(error.span(), format!("`{}` stands on a free `fn` with a body", kind.attribute()));
            let error = error.into_compile_error();
            return quote!(#item #error);
        }
    };
    match understand(kind, attribute, item.clone()) {
        Ok((options, function)) => write(&options, &function),
        Err(error) => {
            let item = parse::without_model_attributes(item);
            let error = error.into_compile_error();
            quote!(#item #error)
        }
    }
}

/// Expands `function!(path)`.
pub(crate) fn function(path: TokenStream) -> TokenStream {
    match Path::parse_mod_style.parse2(path) {
        Ok(mut path) => {
            let last = path.segments.last_mut().expect("a path has a segment");
            last.ident = hidden(&last.ident);
            quote!(#path())
        }
        Err(error) => Error::new(
            error.span(),
            "`function!` takes the path of a worker function, such as `pictures::generate`",
        )
        .into_compile_error(),
    }
}

fn understand(kind: Kind, attribute: TokenStream, item: ItemFn) -> syn::Result<(Options, WorkerFunction)> {
    match (syn::parse2(attribute), parse::item(kind, item)) {
        (Ok(options), Ok(function)) => Ok((options, function)),
        (Err(mut first), Err(second)) => {
            first.combine(second);
            Err(first)
        }
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// The name of the function that makes the [`Function`](gen_worker_core::Function).
fn hidden(name: &Ident) -> Ident {
    format_ident!("__gen_worker_{}", name)
}

fn write(options: &Options, function: &WorkerFunction) -> TokenStream {
    let WorkerFunction { item, payload, .. } = function;
    let name = &item.sig.ident;
    let wire_name = options.name.clone().unwrap_or_else(|| name.unraw().to_string());
    if let Err(problem) = check_name(&wire_name) {
        let error = Error::new(name.span(), problem).into_compile_error();
        return quote!(#item #error);
    }
    let (hidden, visibility) = (hidden(name), &item.vis);
    let private = private();
    let resources = resources(options);
    let models = function.extractors.iter().filter_map(model);
    let needs = function.extractors.iter().map(need);
    let takes = function
        .extractors
        .iter()
        .filter(|extractor| extractor.binding.is_none())
        .map(|extractor| &extractor.ty);
    let body = body(function);
    let builder = match function.kind {
        Kind::Function => quote!(builder::<#payload>),
        Kind::Websocket => quote!(realtime),
    };
    quote! {
        #item

        #[doc(hidden)]
        #visibility fn #hidden() -> #private::Function {
            #(#needs)*
            #private::Function::#builder(#wire_name, ::core::module_path!())
                .resources(#resources)
                #(#models)*
                #(.takes::<#takes>())*
                #body
                .expect("the macro checked the name")
        }

        #private::submit! {
            #private::Registration { make: #hidden }
        }
    }
}

pub(crate) fn private() -> TokenStream {
    quote!(::gen_worker::__private)
}

fn resources(options: &Options) -> TokenStream {
    let private = private();
    let text = |text: &Option<String>| match text {
        Some(text) => quote!(::core::option::Option::Some(::std::string::String::from(#text))),
        None => quote!(::core::option::Option::None),
    };
    let number = |number: Option<f64>| match number {
        Some(number) => quote!(::core::option::Option::Some(#number)),
        None => quote!(::core::option::Option::None),
    };
    let (model_name, model_family) = (text(&options.model_name), text(&options.model_family));
    let (least, recommended) = (number(options.min_vram_gb), number(options.recommended_vram_gb));
    let requires_gpu = options.requires_gpu;
    let max_concurrency = options.max_concurrency.unwrap_or(0);
    quote! {
        #private::ResourceRequirements {
            model_name: #model_name,
            model_family: #model_family,
            min_vram_gb: #least,
            recommended_vram_gb: #recommended,
            requires_gpu: #requires_gpu,
            max_concurrency: ::core::num::NonZeroU32::new(#max_concurrency),
        }
    }
}

fn model(extractor: &Extractor) -> Option<TokenStream> {
    let private = private();
    let Extractor { name, ty, binding } = extractor;
    let binding = match binding.as_ref()? {
        Binding::Payload(field) => quote!(#private::ModelBinding::Payload(#field)),
        Binding::Deployment(key) => quote!(#private::ModelBinding::Deployment(#key)),
    };
    Some(quote!(.model::<#ty>(#name, #binding)))
}

/// Fails to compile, at the parameter's type, when a model has no `#[model(…)]` or what is no model has one.
fn need(extractor: &Extractor) -> TokenStream {
    let private = private();
    let Extractor { name, ty, binding } = extractor;
    let none = quote!(::core::matches!(<#ty as #private::Extract>::NEED, #private::ModelNeed::None));
    match binding {
        None => {
            let hint = format!(
                "`{name}` is a model: say where its reference comes from, `#[model(payload = \"field\")]` or \
                 `#[model(deployment = \"key\")]`"
            );
            quote_spanned!(ty.span()=> const _: () = ::core::assert!(#none, #hint);)
        }
        Some(_) => {
            let hint = format!("`{name}` takes no model; remove its `#[model(…)]`");
            quote_spanned!(ty.span()=> const _: () = ::core::assert!(!#none, #hint);)
        }
    }
}

fn body(function: &WorkerFunction) -> TokenStream {
    let private = private();
    let WorkerFunction { item, payload, extractors, returns, .. } = function;
    // Names that user code cannot see, whatever macro wrote it.
    let call = Ident::new("call", Span::mixed_site());
    let variables: Vec<_> =
        (0..extractors.len()).map(|at| format_ident!("extracted_{at}", span = Span::mixed_site())).collect();
    let extracted = extractors
        .iter()
        .zip(&variables)
        .map(|(Extractor { name, ty, .. }, variable)| {
            quote_spanned!(ty.span()=> let #variable = #call.extract::<#ty>(#name)?;)
        });
    let name = &item.sig.ident;
    let wait = item.sig.asyncness.map(|_| quote!(.await));
    let called = quote!(#name(#call.context, #call.input, #(#variables),*) #wait);
    let into_error = quote_spanned! {argument(&item.sig.output, 1)=>
        .map_err(::gen_worker::__private::FunctionError::reported)
    };
    let returned = match returns {
        Returns::Value => quote!(#called #into_error),
        Returns::ResultOfStream => quote!(#called.map(#private::DeltaStream::new) #into_error),
        Returns::Stream => quote! {
            ::core::result::Result::Ok::<_, #private::WorkerError>(#private::DeltaStream::new(#called))
        },
    };
    // A type that cannot be returned is shown where it stands, not at the attribute.
    let value = argument(&item.sig.output, 0);
    if item.sig.asyncness.is_none() && *returns == Returns::Value {
        let method = Ident::new("blocking", value);
        quote!(.#method(move |#call: #private::Call<#payload>| { #(#extracted)* #returned }))
    } else {
        let method = Ident::new("asynchronous", value);
        quote!(.#method(move |#call: #private::Call<#payload>| async move { #(#extracted)* #returned }))
    }
}

/// Where the `T` (0) or the `E` (1) of a `Result<T, E>` stands; where the return type stands if that has no such part.
pub(crate) fn argument(output: &ReturnType, at: usize) -> Span {
    let ReturnType::Type(_, ty) = output else {
        return output.span();
    };
    let arguments = match &**ty {
        Type::Path(path) => path.path.segments.last().map(|last| &last.arguments),
        _ => None,
    };
    match arguments {
        Some(PathArguments::AngleBracketed(arguments)) => {
            arguments.args.get(at).map_or(ty.span(), Spanned::span)
        }
        _ => ty.span(),
    }
}
