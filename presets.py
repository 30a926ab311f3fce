"""Two sizes of one model, `tiny` and `wan1.3b`: nothing but sizes, ids and named switches.

`tiny` trains on two CPU cores; `wan1.3b` is the paper's, as its authors released it. A field stands
below the comment that says whose choice it is.
"""

from dataclasses import dataclass


# the parts of model.UnifiedModel, by the names of its attributes
VLM_PARTS = ("vlm.llm", "vlm.vision_tower", "vlm.mm_projector")
FROZEN = (*VLM_PARTS, "text_encoder", "vae", "ar_head", "adapter", "boundary")
TRAINED = ("transformer", "visual_context_adapter")      # G and its adapter (Sec. 5.1)
PARTS = (*FROZEN, *TRAINED)


@dataclass(frozen=True)
class ChatWords:
    """The chat that U reads for Eq. 1's h: the system's sentence; then the user's frames, prefix
    and instruction; then how the answer begins."""
    system: str
    prefix: str                         # between the frames' tokens and the instruction
    answer: str                         # its tokens are the last ones of h


GENERATE = "You are a helpful assistant that edits videos."
SHORT_CHAT = ChatWords(GENERATE, "", "[GEN_VID]")
VILA_CHAT = ChatWords(
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.",
    "<video>\n", "[GEN_VID]<|end_of_text|>")


@dataclass(frozen=True)
class Preset:
    """Sizes and switches of one model. The `dict`s go to the library classes as they are."""
    name: str
    # the method's: clips, the five models, the connector between them (Sec. 4.1)
    frames: int                         # pixel frames of a clip: 4 k + 1
    height: int
    width: int
    vlm_frames: int                     # K: the frames that the VLM sees, evenly spaced
    vlm_size: int                       # side, in pixels, of the square that U sees a frame as
    siglip: dict
    llama: dict
    t5: dict
    vae: dict
    dit: dict
    ar_width: int                       # ARHead
    ar_layers: int
    ar_heads: int
    adapter_layers: int                 # Adapter
    adapter_heads: int
    adapter_queries: int
    visual_kernel: int                  # side of the visual context adapter's patches, in latents
    visual_width: int
    context_length: int                 # the context is padded with zeros to this, and never cut
    text_length: int                    # longest T5 sequence
    ar_queries: int = 4
    # the authors', in their code but not in their paper; the defaults are tiny's
    chat: ChatWords = SHORT_CHAT        # in which the VLM reads source and instruction
    patches_by_column: bool = False     # a frame's tokens run down its columns, as VILA's do
    visual_eps: float = 1e-5            # of the visual context adapter's layer norms
    frame_stride: int | None = None     # of a clip in its video; None: spread over the whole video
    whole_view: bool = False            # the VLM's condition sees frames before they are cropped
    first_frame: bool = False           # h is of the source's first frame only
    shift: float = 3.0                  # flow shift at inference; in training it is 3 in both
    sampler: str = "euler"              # or "unipc"
    sample_steps: int = 12
    guidance: float = 1.0               # g in v + g (v - v_uncond); 0 is none
    bf16: bool = False                  # frozen parts, and products under autocast; G is float32
    # ours: what lets a VLM and a DiT of a few layers do it
    source_beside_noise: bool = False   # source latents beside x_t on the channel axis
    visual_position: bool = False       # a learned position for each visual token
    paired: bool = False                # the critic sees an edit's token after the source's
    decode: str = "exact"               # the critic's K frames, see critic.decode_frames

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, f, h, w) of one clip's latents."""
        side = self.vae["scale_factor_spatial"]
        frames = (self.frames - 1) // 4 + 1              # after the first, 4 become 1 (Wan's VAE)
        return self.vae["z_dim"], frames, self.height // side, self.width // side


PRESETS = {
    "tiny": Preset(
        name="tiny", frames=9, height=32, width=32, vlm_frames=3, vlm_size=32,
        siglip=dict(hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                    num_attention_heads=4, image_size=32, patch_size=4, vision_use_head=False),
        llama=dict(hidden_size=128, intermediate_size=256, num_hidden_layers=7,
                   num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
                   vocab_size=1024, tie_word_embeddings=True),
        t5=dict(d_model=128, d_kv=32, d_ff=128, num_layers=2, num_heads=4, vocab_size=1024,
                dropout_rate=0.0),
        vae=dict(base_dim=16, z_dim=16, dim_mult=[1, 2, 4], num_res_blocks=1,
                 temperal_downsample=[True, True], scale_factor_spatial=4,
                 latents_mean=[0.] * 16, latents_std=[1.] * 16),
        dit=dict(patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=48,
                 in_channels=32, out_channels=16, text_dim=128, freq_dim=128, ffn_dim=352,
                 num_layers=5),
        ar_width=64, ar_layers=1, ar_heads=4,
        adapter_layers=1, adapter_heads=4, adapter_queries=4,
        visual_kernel=2, visual_width=128, context_length=128, text_length=48,
        source_beside_noise=True, visual_position=True, paired=True, decode="alone"),
    "wan1.3b": Preset(
        name="wan1.3b", frames=17, height=352, width=640, vlm_frames=8, vlm_size=384,
        siglip=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
                    num_attention_heads=16, image_size=384, patch_size=14, vision_use_head=False),
        llama=dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                   num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
                   vocab_size=128256, rope_theta=500000.0, rms_norm_eps=1e-5),
        t5=dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                vocab_size=256384, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        vae=dict(base_dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
                 temperal_downsample=[False, True, True], scale_factor_spatial=8),
        dit=dict(patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128,
                 in_channels=16, out_channels=16, text_dim=4096, freq_dim=256, ffn_dim=8960,
                 num_layers=30),
        ar_width=1152, ar_layers=4, ar_heads=8,
        adapter_layers=4, adapter_heads=8, adapter_queries=256,
        visual_kernel=4, visual_width=1536, visual_eps=1e-6,
        # 384 fit beside 1,100 visual and 1,024 adapter tokens; T5 itself could read 512
        context_length=2560, text_length=384,
        shift=5.0, sampler="unipc", sample_steps=40, guidance=3.0,
        frame_stride=1, whole_view=True,
        chat=VILA_CHAT, first_frame=True, patches_by_column=True, bf16=True),
}
