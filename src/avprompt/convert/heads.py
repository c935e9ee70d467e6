"""Names of weights in the heads of the authors' released networks, and ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HeadKeys:
    """Names of a head in an authors' checkpoint and ours.

    Args:
        prefixes: prefix of their names -> prefix of ours, below `head.`.
        parts: part of their names after the prefix -> ours.
        dead: patterns of their names that do not influence the outputs.

    Example:
        >>> keys = HeadKeys({"fc_a.": "audio_project."}, dead=(r"unused\\.",))
        >>> keys.rename("fc_a.weight"), keys.rename("unused.bias"), keys.rename("fc_b.weight")
        ('head.audio_project.weight', None, 'fc_b.weight')
    """

    prefixes: dict[str, str]
    parts: dict[str, str] = field(default_factory=dict)
    dead: tuple[str, ...] = ()

    def rename(self, key: str) -> str | None:
        """Our name of a released key; `None` if the key is dead, the key itself if it is unknown."""
        if any(re.match(pattern, key) for pattern in self.dead):
            return None
        for theirs in sorted(self.prefixes, key=len, reverse=True):
            if key.startswith(theirs):
                name = f"head.{self.prefixes[theirs]}{key[len(theirs) :]}"
                for part, ours in self.parts.items():
                    name = name.replace(part, ours)
                return name
        return key


#: AVE. Dead are prototypes of copied layers, a self-attention that is never called, the interaction modules of CMBS,
#: whose result nothing uses, and a module outside the head that is never called
CMBS = HeadKeys(
    prefixes={
        "temporal_attn.a_fc.": "audio.project.",
        "temporal_attn.v_fc.": "visual.project.",
        "temporal_attn.audio_visual_rnn_layer.audio_rnn.": "audio.rnn.",
        "temporal_attn.audio_visual_rnn_layer.visual_rnn.": "visual.rnn.",
        "temporal_attn.audio_encoder.affine_matrix.": "audio.encoder.project.",
        "temporal_attn.video_encoder.affine_matrix.": "visual.encoder.project.",
        "temporal_attn.audio_encoder.encoder.layers.": "audio.encoder.layers.",
        "temporal_attn.video_encoder.encoder.layers.": "visual.encoder.layers.",
        "temporal_attn.audio_decoder.affine_matrix.": "audio_decoder.project.",
        "temporal_attn.video_decoder.affine_matrix.": "visual_decoder.project.",
        "temporal_attn.audio_decoder.decoder.layers.0.multihead_attn.": "audio_decoder.attention.",
        "temporal_attn.video_decoder.decoder.layers.0.multihead_attn.": "visual_decoder.attention.",
        "temporal_attn.audio_decoder.decoder.layers.0.": "audio_decoder.",
        "temporal_attn.video_decoder.decoder.layers.0.": "visual_decoder.",
        "temporal_attn.audio_gated.0.": "audio.gate.",
        "temporal_attn.video_gated.0.": "visual.gate.",
        "CMBS.audio_cas.": "audio_scores.",
        "CMBS.video_cas.": "visual_scores.",
        "CMBS.localize_module.classifier.": "localize.is_event.",
        "CMBS.localize_module.event_classifier.": "localize.event.",
    },
    dead=(
        r"temporal_attn\.\w+_encoder\.encoder_layer\.",
        r"temporal_attn\.\w+_decoder\.decoder_layer\.",
        r"temporal_attn\.\w+_decoder\.decoder\.layers\.0\.self_attn\.",
        r"CMBS\.(AVInter|VAInter|video_norm|audio_norm)\.",
        r"adapter_token_downsampler\.",
    ),
)
#: AVVP. Dead are prototypes of copied layers, the gate that vision opens on audio, whose result is
#: overwritten, and a module outside the head that is never called
MGN = HeadKeys(
    prefixes={
        "audio_token": "audio_tokens",
        "visual_token": "visual_tokens",
        "fc_a.": "audio_project.",
        "fc_v.": "visual_project.",
        "fc_st.": "video_project.",
        "fc_fusion.": "fusion.",
        "audio_cug.": "audio_grouping.",
        "visual_cug.": "visual_grouping.",
        "av_mcg.": "joint_grouping.",
        "fc_prob.": "joint_score.",
        "fc_prob_a.": "audio_score.",
        "fc_prob_v.": "visual_score.",
        "fc_cls.": "token_class.",
        "temporal_attn.audio_visual_rnn_layer.audio_rnn.": "audio_gate.rnn.",
        "temporal_attn.audio_encoder.affine_matrix.": "audio_gate.encoder.project.",
        "temporal_attn.audio_encoder.encoder.layers.": "audio_gate.encoder.layers.",
        "temporal_attn.audio_gated.0.": "audio_gate.gate.",
    },
    parts={
        ".han_encoder.": ".seed.",
        ".grouping.": ".group.",
        ".mlp_inter.": ".mix.",
        ".norm_post_tokens.": ".norm_mixed.",
        ".pre_assign_attn.norm2.": ".norm_look.",
        ".pre_assign_attn.norm_post.": ".norm_seen.",
        ".pre_assign_attn.attn.": ".look.",
        ".pre_assign_attn.mlp.": ".mlp_look.",
        ".norm_new_x.": ".norm_new.",
        ".mlp_channels.": ".mlp.",
        ".q_proj.": ".query.",
        ".k_proj.": ".key.",
        ".v_proj.": ".value.",
    },
    dead=(
        r"temporal_attn\.\w+_encoder\.encoder_layer\.",
        r"temporal_attn\.(video_encoder|video_gated|audio_visual_rnn_layer\.visual_rnn)\.",
        r"adapter_token_downsampler\.",
    ),
)
#: AVS; counters start at one in the authors' names. Dead are a second, unused backbone and its adapters, decoders whose
#: result nothing uses, and prototypes of copied layers
AVS_DECODER = HeadKeys(
    prefixes={
        **{f"x{k + 1}_linear_.": f"levels.{k}.project." for k in range(4)},
        **{f"tpavi_b{k + 1}.": f"levels.{k}.tpavi." for k in range(4)},
        **{f"path{k + 1}.resConfUnit1.": f"fusions.{k}.skip." for k in range(4)},
        **{f"path{k + 1}.resConfUnit2.": f"fusions.{k}.refine." for k in range(4)},
        "audio_linear.": "audio_project.",
        "output_conv.": "output.",
        **{
            f"temporal_attn.{theirs.format(k)}.": f"levels.{k}.{ours}."
            for k in range(4)
            for theirs, ours in {
                "v_fc.{}": "pooled",
                "audio_visual_rnn_layer.{}.audio_rnn": "audio_gate.rnn",
                "audio_visual_rnn_layer.{}.visual_rnn": "visual_gate.rnn",
                "audio_encoder.{}.affine_matrix": "audio_gate.encoder.project",
                "video_encoder.{}.affine_matrix": "visual_gate.encoder.project",
                "audio_encoder.{}.encoder.layers": "audio_gate.encoder.layers",
                "video_encoder.{}.encoder.layers": "visual_gate.encoder.layers",
                "audio_gated.{}.0": "audio_gate.gate",
                "video_gated.{}.0": "visual_gate.gate",
            }.items()
        },
    },
    parts={
        ".align_channel.": ".align.",
        ".norm_layer.": ".norm.",
        ".W_z.0.": ".expand.",
        ".W_z.1.": ".bn.",
        ".g.": ".value.",
        ".theta.": ".query.",
        ".phi.": ".key.",
    },
    dead=(
        r"encoder_backbone\.",
        r"conv[1-4]\.",
        r"x[1-4]_linear\.",
        r"path4\.resConfUnit1\.",
        r"temporal_attn\.(video|audio)_decoder\.",
        r"temporal_attn\.\w+_encoder\.\d\.encoder_layer\.",
    ),
)
#: AVQA
ST_AVQA = HeadKeys(
    prefixes={
        "fc_a1.": "grounding.audio.0.",
        "fc_a2.": "grounding.audio.2.",
        "fc_gl.": "grounding.merge.",
        "fc1.": "grounding.match.0.",
        "fc2.": "grounding.match.2.",
        "fc3.": "grounding.match.4.",
        "fc4.": "grounding.match.6.",
        "question_encoder.word2vec.": "question.words.",
        "question_encoder.lstm.": "question.lstm.",
        "question_encoder.fc.": "question.project.",
        "attn_v.": "visual_reader.attention.",
        "linear11.": "visual_reader.linear1.",
        "linear12.": "visual_reader.linear2.",
        "norm1.": "visual_reader.norm.",
        "attn_a.": "audio_reader.attention.",
        "linear21.": "audio_reader.linear1.",
        "linear22.": "audio_reader.linear2.",
        "norm2.": "audio_reader.norm.",
        "fc_fusion.": "fusion.",
        "fc_ans.": "answer.",
    },
    dead=(r"fc_a[12]_pure\.", r"norm3\."),
)
#: the few-shot networks. Dead are modules that are never called, or (`token_`) embeddings of the class names that the
#: network was trained on, which are computed again
CONTRASTIVE = HeadKeys(
    prefixes={
        "prompt_learner.ctx": "branches.visual.texts.context",
        "clip_adapter.fc.0.": "branches.visual.adapter.down.",
        "clip_adapter.fc.2.": "branches.visual.adapter.up.",
        "clip_adapter_text.fc.0.": "branches.visual.text_adapter.down.",
        "clip_adapter_text.fc.2.": "branches.visual.text_adapter.up.",
        "audio_visual_contrastive_learner.fc_a1.": "matching.audio.",
    },
    dead=(r"CMBS\.", r"audio_adapter\.", r"prompt_learner\.(meta_net\.|token_(prefix|suffix)$)"),
)
