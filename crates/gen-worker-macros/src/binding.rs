//! The attribute `#[model(…)]` of a parameter.

use syn::{
    Attribute, Error, Ident, LitStr, Meta, Result, Token,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
};

use crate::{model::Binding, options::unknown_key};

pub(crate) const MODEL: &str = "say where the model's reference comes from: `#[model(payload = \"field\")]` or \
    `#[model(deployment = \"key\")]`";

/// Whether the attribute is `#[model…]`.
pub(crate) fn is_model(attribute: &Attribute) -> bool {
    attribute.path().is_ident("model")
}

/// What the `#[model(…)]` among a parameter's attributes says; `None` when there is none.
pub(crate) fn binding(attributes: &[Attribute]) -> Result<Option<Binding>> {
    let mut models = attributes.iter().filter(|attribute| is_model(attribute));
    let Some(attribute) = models.next() else {
        return Ok(None);
    };
    if let Some(second) = models.next() {
        return Err(Error::new_spanned(second, "a parameter has one `#[model(…)]`; remove this one"));
    }
    let Meta::List(list) = &attribute.meta else {
        return Err(Error::new_spanned(attribute, MODEL));
    };
    let keys = list.parse_args_with(Punctuated::<KeyText, Token![,]>::parse_terminated)?;
    let mut keys = keys.into_iter();
    let first = keys.next().ok_or_else(|| Error::new_spanned(attribute, MODEL))?;
    match keys.next() {
        Some(second) => Err(Error::new(second.key.span(), format!("a model has one source; {MODEL}"))),
        None => first.into_binding().map(Some),
    }
}

struct KeyText {
    key: Ident,
    text: LitStr,
}

impl Parse for KeyText {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let key: Ident = input.parse()?;
        if key != "payload" && key != "deployment" {
            return Err(unknown_key(&key, &["payload", "deployment"]));
        }
        let missing = |_| Error::new(key.span(), MODEL);
        input.parse::<Token![=]>().map_err(missing)?;
        let text = input.parse().map_err(missing)?;
        Ok(Self { key, text })
    }
}

impl KeyText {
    fn into_binding(self) -> Result<Binding> {
        let text = self.text.value();
        if text.trim().is_empty() {
            return Err(Error::new(self.text.span(), format!("`{}` must not be empty", self.key)));
        }
        Ok(match self.key == "payload" {
            true => Binding::Payload(text),
            false => Binding::Deployment(text),
        })
    }
}
