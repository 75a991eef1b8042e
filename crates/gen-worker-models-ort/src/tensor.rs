//! Arrays as models take and give them.

use std::fmt;

use half::{bf16, f16};
use ndarray::{Array, ArrayD, Dimension};
use ort::value::{DynValue, TensorElementType, TensorValueTypeMarker, Value};

use crate::error::ModelError;

macro_rules! elements {
    ($($variant:ident = $type:ident, $ort:ident, $doc:literal;)*) => {
        /// A type of the elements of a tensor.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum ElementType {
            $(#[doc = $doc] $variant,)*
        }

        /// An array of one of the types that models take and give. Any `ndarray` array turns into one.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Tensor {
            $(#[doc = $doc] $variant(ArrayD<$type>),)*
        }

        impl ElementType {
            /// The library's name of it.
            pub(crate) fn to_ort(self) -> TensorElementType {
                match self { $(Self::$variant => TensorElementType::$ort,)* }
            }

            /// The name in Rust.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($type),)* }
            }

            /// `None`: a type that tensors cannot have here.
            pub(crate) fn from_ort(element: TensorElementType) -> Option<Self> {
                match element {
                    $(TensorElementType::$ort => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl Tensor {
            /// The type of the elements.
            pub fn element(&self) -> ElementType {
                match self { $(Self::$variant(_) => ElementType::$variant,)* }
            }

            /// The length of each axis; empty for a single number.
            pub fn shape(&self) -> &[usize] {
                match self { $(Self::$variant(array) => array.shape(),)* }
            }

            /// Without a copy where its memory lies row by row.
            pub(crate) fn into_ort(self) -> Result<DynValue, ModelError> {
                match self {
                    $(Self::$variant(array) => array.into_value(),)*
                }
                .map_err(ModelError::run)
            }

            pub(crate) fn from_ort<M: TensorValueTypeMarker + ?Sized>(
                name: &str,
                value: &Value<M>,
            ) -> Result<Self, ModelError> {
                let element = value.dtype().tensor_type().and_then(ElementType::from_ort);
                match element {
                    $(Some(ElementType::$variant) => ArrayD::<$type>::of_value(value).map(Into::into),)*
                    None => return Err(ModelError::Outputs {
                        expected: "tensors of numbers, bools or texts".into(),
                        given: format!("{name} as {}", value.dtype()),
                    }),
                }
                .map_err(ModelError::run)
            }
        }

        $(
            impl Element for $type {
                const TYPE: ElementType = ElementType::$variant;

                fn take(tensor: Tensor) -> Result<ArrayD<Self>, Tensor> {
                    match tensor {
                        Tensor::$variant(array) => Ok(array),
                        other => Err(other),
                    }
                }
            }

            impl<D: Dimension> From<Array<$type, D>> for Tensor {
                fn from(array: Array<$type, D>) -> Self {
                    Self::$variant(array.into_dyn())
                }
            }
        )*
    };
}

elements! {
    F16 = f16, Float16, "16-bit floating-point numbers.";
    Bf16 = bf16, Bfloat16, "16-bit floating-point numbers with the range of 32-bit ones.";
    F32 = f32, Float32, "32-bit floating-point numbers.";
    F64 = f64, Float64, "64-bit floating-point numbers.";
    I64 = i64, Int64, "64-bit integers.";
    I32 = i32, Int32, "32-bit integers.";
    I16 = i16, Int16, "16-bit integers.";
    I8 = i8, Int8, "8-bit integers.";
    U64 = u64, Uint64, "64-bit integers without a sign.";
    U32 = u32, Uint32, "32-bit integers without a sign.";
    U16 = u16, Uint16, "16-bit integers without a sign.";
    U8 = u8, Uint8, "Bytes.";
    Bool = bool, Bool, "Truth values.";
    String = String, String, "Texts.";
}

/// An array as a value of the library and back.
trait Stored: Sized {
    /// Without a copy where the library can use the array's memory.
    fn into_value(self) -> ort::Result<DynValue>;

    fn of_value<M: TensorValueTypeMarker + ?Sized>(value: &Value<M>) -> ort::Result<Self>;
}

macro_rules! stored {
    ($($type:ident)*) => {
        $(
            impl Stored for ArrayD<$type> {
                fn into_value(self) -> ort::Result<DynValue> {
                    Value::from_array(self).map(Value::into_dyn)
                }

                fn of_value<M: TensorValueTypeMarker + ?Sized>(value: &Value<M>) -> ort::Result<Self> {
                    value.try_extract_array::<$type>().map(|array| array.to_owned())
                }
            }
        )*
    };
}

stored! { f16 bf16 f32 f64 i64 i32 i16 i8 u64 u32 u16 u8 bool }

impl Stored for ArrayD<String> {
    fn into_value(self) -> ort::Result<DynValue> {
        Value::from_string_array(&self).map(Value::into_dyn)
    }

    fn of_value<M: TensorValueTypeMarker + ?Sized>(value: &Value<M>) -> ort::Result<Self> {
        value.try_extract_string_array()
    }
}

/// A Rust type that the elements of a tensor can have.
pub trait Element: Sized {
    /// Its name as a value.
    const TYPE: ElementType;

    /// The tensor as an array of this type.
    ///
    /// # Errors
    /// The tensor itself, when its elements are of another type.
    fn take(tensor: Tensor) -> Result<ArrayD<Self>, Tensor>;
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Tensor {
    /// The type and shape, such as `f32[1, 3]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.element(), self.shape())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn what_lies_row_by_row_is_not_copied() {
        crate::library::for_tests();
        let address = |tensor: Tensor| {
            let value = tensor.into_ort().unwrap();
            value.try_extract_array::<f32>().unwrap().as_ptr()
        };
        let array = Array::from_elem((2, 3), 1.0_f32);
        let before = array.as_ptr();
        assert_eq!(address(array.into()), before);
        let array = Array::from_elem((2, 3), 1.0_f32).reversed_axes();
        let before = array.as_ptr();
        assert_ne!(address(array.into()), before, "its columns lie one after the other");
    }

    #[test]
    fn is_taken_back_as_what_it_is_only() {
        let tensor = Tensor::from(array![[1_i64, 2, 3]]);
        assert_eq!(tensor.to_string(), "i64[1, 3]");
        let tensor = f32::take(tensor).unwrap_err();
        assert_eq!(i64::take(tensor).unwrap(), array![[1, 2, 3]].into_dyn());
    }
}
