"""From a parsed `config.json` to the facts of a model."""

from collections.abc import Mapping

from libs.common.errors import Malformed
from libs.inference.planner.facts import Certainty, Layer, LayerInputs, ModelFacts, Vision
from libs.inference.planner.families import Family, family_of
from libs.inference.planner.feed_forward import feed_forward_of
from libs.inference.planner.fields import Fields
from libs.inference.planner.mixers import mixers_of, type_bytes
from libs.inference.planner.quantisation import cache_type_of, quantisation_of

MOST_LAYERS = 10_000

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
)


def model_facts(config: Mapping[str, object], quantisation: Mapping[str, object] | None = None) -> ModelFacts:
    """Read a parsed `config.json`, and a parsed `hf_quant_config.json` where there is one.

    An architecture that is not known by name is read as a plain one and marked `Certainty.LOW` with the reason.
    Raises `Malformed` for a field that is missing or wrong, `Unsupported` for one that says the model is built in a
    way that cannot be sized; both name it in `details.field`.
    """
    whole = Fields(config)
    architecture = next(iter(whole.texts("architectures")), "")
    if not architecture:
        raise Malformed("architectures must name the model's class", field="architectures")
    text = whole.part("text_config", "llm_config", "language_config") or whole
    family = family_of(architecture, text)
    layers = _layers(text, family)
    length_field = _length_field(text)
    separate = Fields(quantisation) if quantisation else None
    doubts = () if family.known else (f"architectures: {architecture} is not known here and read as a plain model",)
    return ModelFacts(
        architecture=architecture,
        hidden=text.count("hidden_size", least=1),
        vocabulary=text.count("vocab_size", least=1),
        layers=layers,
        tied=_tied(whole, text, family),
        max_position=text.count(length_field, default=0),
        length_field=length_field,
        type_bytes=type_bytes(text if text.has("dtype", "torch_dtype") else whole, "dtype", "torch_dtype"),
        rope_dim=_rope_dim(text, family),
        quantisation=quantisation_of(whole, separate),
        cache_type=cache_type_of(whole, separate),
        vision=_vision(whole),
        layer_inputs=_layer_inputs(text),
        draft_layers=text.count("num_nextn_predict_layers", "mtp_num_hidden_layers", default=family.draft_layers),
        pipeline=family.pipeline,
        certainty=Certainty.EXACT if family.known else Certainty.LOW,
        doubts=doubts,
    )


def _length_field(text: Fields) -> str:
    """The field that limits the length: `model_max_length` whatever others say, or the one that allows least.

    Source: `transformers_utils/model_arch_config_convertor.py` (`derive_max_model_len_and_key`).
    """
    if text.count("model_max_length", default=0):
        return "model_max_length"
    return min(filter(text.has, LENGTHS), key=text.count, default=LENGTHS[0])


def _layers(text: Fields, family: Family) -> tuple[Layer, ...]:
    count = text.count("num_hidden_layers", "n_layer", least=1)
    if count > MOST_LAYERS:
        field = f"{text.where}num_hidden_layers"
        raise Malformed(f"{field} must be at most {MOST_LAYERS}, not {count}", field=field)
    pairs = zip(mixers_of(text, family, count), feed_forward_of(text, family, count), strict=True)
    return tuple(Layer(mixer=mixer, feed_forward=blocks, norms=family.norms) for mixer, blocks in pairs)


def _tied(whole: Fields, text: Fields, family: Family) -> bool:
    where = text if text.has("tie_word_embeddings") else whole
    return where.flag("tie_word_embeddings", default=family.tied)


def _rope_dim(text: Fields, family: Family) -> int:
    """The width of the table of rotations: the whole head, or the part that latent attention rotates."""
    if family.embedded_positions or text.has("hybrid_override_pattern") or text.flag("mla_use_nope"):
        return 0
    if text.has("qk_rope_head_dim"):
        return text.count("qk_rope_head_dim")
    default = text.count("hidden_size", least=1) // text.count("num_attention_heads", least=1)
    return text.count("head_dim", default=default)


def _layer_inputs(text: Fields) -> LayerInputs | None:
    width = text.count("hidden_size_per_layer_input", default=0)
    if not width:
        return None
    return LayerInputs(
        words=text.count("vocab_size_per_layer_input", "vocab_size", least=1),
        width=width,
        streams=text.count("altup_num_inputs", default=1, least=1),
        narrow=text.count("laurel_rank", default=0),
    )


def _vision(whole: Fields) -> Vision | None:
    part = whole.part("vision_config")
    if part is None or not part.has("depth", "num_hidden_layers", "vt_num_hidden_layers"):
        return None
    hidden = part.count("hidden_size", "vt_hidden_size", "embed_dim", least=1)
    patch = part.count("patch_size", default=14) ** 2 * part.count("in_channels", "in_chans", "num_channels", default=3)
    merge = part.count("spatial_merge_size", default=1) ** 2
    return Vision(
        hidden=hidden,
        depth=part.count("depth", "num_hidden_layers", "vt_num_hidden_layers", least=1),
        intermediate=part.count("intermediate_size", "vt_intermediate_size", default=4 * hidden, least=1),
        heads=part.count("num_heads", "num_attention_heads", "vt_num_attention_heads", least=1),
        gated=part.text("hidden_act", "hidden_activation", "activation_func", default="gelu") == "silu",
        patch_values=patch * part.count("temporal_patch_size", default=1),
        merged=hidden * merge,
    )
