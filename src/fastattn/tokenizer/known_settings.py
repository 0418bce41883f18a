"""The known settings of tokenizer_config.json that change nothing, and the warning for all others."""

from __future__ import annotations

import logging

from fastattn.settings import Settings

_log = logging.getLogger("fastattn")
# Names of files, options of other libraries, and options that affect only some tokenizer classes (their builders
# have already read them).
_WITHOUT_EFFECT = """
tokenizer_class name_or_path special_tokens_map_file tokenizer_file vocab_file merges_file added_tokens_file
full_tokenizer_file auto_map backend is_local local_files_only processor_class chat_template response_template
response_schema chat_control_tokens verbose errors device_map use_default_system_prompt from_slow use_fast
trust_remote_code transformers_version tokenizer_version files_loaded max_length stride truncation_strategy
truncation padding pad_to_multiple_of pad_token_type_id remove_space spaces_between_special_tokens init_inputs
model_specific_special_tokens slow_tokenizer_class sp_model_kwargs do_basic_tokenize never_split model_type
do_lower_case strip_accents tokenize_chinese_chars add_prefix_space trim_offsets keep_accents split_by_punct legacy
unk_id extra_ids clean_text wordpieces_prefix src_lang tgt_lang offset mask_token_sent fast_tokenizer_files
additional_special_tokens extra_special_tokens return_token_type_ids fix_mistral_regex add_eos_token add_bos_token
added_tokens_decoder max_len model_max_length padding_side truncation_side model_input_names split_special_tokens
clean_up_tokenization_spaces source_lang target_lang separate_vocabs vocab_type special_tokens_map
"""
# Settings that transformers 5 ignores, although they used to change results.
_IGNORED_BY_TRANSFORMERS: dict[str, object] = {
    "do_basic_tokenize": True,
    "never_split": [],
    "sp_model_kwargs": {},
    "init_inputs": [],
    "fix_mistral_regex": False,
}


def finish(settings: Settings) -> None:
    """Log one warning for ignored settings that used to change results, and one for unknown settings."""
    settings.ignore(*_WITHOUT_EFFECT.split())
    ignored = [
        key
        for key, default in _IGNORED_BY_TRANSFORMERS.items()
        if settings.values.get(key) is not None and settings.values[key] != default
    ]
    if ignored:
        _log.warning("%s: ignored, as in transformers 5: %s", settings.where, ", ".join(ignored))
    settings.finish()
