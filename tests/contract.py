"""The names that users, scripts and embedding programs rely on, in one table. tests/test_contract.py finds each one real.

They are promises: what stands here may get more parameters with defaults, more fields and more options, and loses none.

    CLASSES    room -> class -> methods (with their parameters, self left out) and fields
    OTHERS     room -> names that are no classes
    VERBS      verb of the command line -> its options, and the fields of its --json document
    ERRORS     what kinds of failure there are -> codes of errors or findings that stand for them
    EXIT_CODES the meaning of a program's end
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Promise(NamedTuple):
    """What a class has. `methods`: name -> parameters, a default after "="; `fields`: names, in any order."""

    methods: Mapping[str, tuple[str, ...]] = {}
    fields: tuple[str, ...] = ()


def _fields(names: str) -> Promise:
    return Promise(fields=tuple(names.split()))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A parameter with "=VALUE" has this default; one with "=" alone has some default; "**name" takes keywords.
CLASSES: Mapping[str, Mapping[str, Promise]] = {
    "supervisor": {
        # What a model is, and what loads it.
        "ArchitectureDetector": Promise(
            {
                "detect_model_architecture": ("model_path",),
                "analyze_model_index": ("model_index",),
                "check_vae_dimensions": ("vae_config",),
                "validate_component_compatibility": ("components",),
            }
        ),
        "PipelineManager": Promise(
            {
                "select_pipeline_class": ("architecture",),
                "load_custom_pipeline": ("model_path", "pipeline_class", "**kwargs"),
                "validate_pipeline_args": ("pipeline_class", "provided_args"),
                "get_pipeline_requirements": ("pipeline_class",),
            }
        ),
        "DependencyManager": Promise(
            {
                "check_remote_code_availability": ("model_path",),
                "fetch_pipeline_code": ("model_path", "trust_remote_code=False"),  # never on unless asked for
                "validate_code_version": ("local_code", "model_version"),
                "install_dependencies": ("requirements",),
            }
        ),
        "RemoteCodeStatus": _fields("is_available source_url version security_hash"),
        "FetchResult": _fields("success code_path sha256 source_url error"),
        "InstallationResult": _fields("success installed skipped failed log"),
        # When something goes wrong.
        "FallbackHandler": Promise(
            {
                "create_fallback_strategy": ("failed_pipeline", "error"),
                "attempt_component_isolation": ("model_path",),
                "suggest_alternative_models": ("target_architecture",),
            }
        ),
        "OptimizationManager": Promise(  # what decides; what acts is the worker's
            {
                "analyze_system_resources": (),
                "recommend_optimizations": ("model_requirements", "system_resources"),
            }
        ),
        # Frames and videos.
        "FrameTensorHandler": Promise(
            {
                "process_output_tensors": ("output",),
                "validate_frame_dimensions": ("frames",),
                "normalize_frame_data": ("frames",),
                "handle_batch_outputs": ("batch_output",),
            }
        ),
        "VideoEncoder": Promise(
            {
                "encode_frames_to_video": ("frames", "output_path", "format=mp4"),
                "configure_encoding_params": ("frames", "target_format"),
                "check_encoding_dependencies": (),
                "provide_fallback_output": ("frames", "output_path"),
            }
        ),
        "EncodingResult": _fields("success output_path config size_bytes errors"),
        "DependencyStatus": _fields("available path version encoders hint"),
        "FallbackResult": _fields("success directory files reason"),
        "FormatConverter": Promise(),
        # Trying and measuring.
        "SmokeTestRunner": Promise(
            {
                "run_pipeline_smoke_test": ("pipeline",),
                "validate_output_format": ("output",),
                "test_memory_usage": ("pipeline",),
                "benchmark_generation_speed": ("pipeline",),
            }
        ),
        "IntegrationValidator": Promise(),
        "PerformanceMonitor": Promise(),
        # Schemas and the registry.
        "SchemaValidator": Promise(
            {"validate_model_index": ("model_index_path",), "generate_schema_errors": ("validation_errors",)}
        ),
        "SchemaValidationResult": _fields("is_valid schema errors warnings suggested_fixes"),
        "CompatibilityRegistry": Promise(
            {
                "__init__": ("registry_path=",),
                "get_pipeline_requirements": ("model_name",),
                "register_model_compatibility": ("model_name", "requirements"),
                "update_registry": ("updates",),
                "validate_model_pipeline_compatibility": ("model_name", "available_pipeline"),
            }
        ),
        # Reports.
        "DiagnosticCollector": Promise(
            {
                "__init__": ("diagnostics_dir=diagnostics",),
                "collect_model_diagnostics": ("model_path", "load_attempt_result"),
                "write_compatibility_report": ("model_name", "diagnostics"),
                "generate_diagnostic_summary": ("diagnostics",),
            }
        ),
        # Loading safely.
        "SafeLoadManager": Promise(
            {
                "__init__": ("default_mode=safe",),
                "set_loading_mode": ("mode",),
                "is_source_trusted": ("model_source",),
                "validate_remote_code_safety": ("code_source",),
                "create_sandboxed_environment": (),
                "get_safe_loading_options": ("model_path",),
            }
        ),
        "SafeLoadingOptions": _fields(
            "allow_remote_code use_sandbox restricted_operations timeout_seconds memory_limit_mb"
        ),
        "SandboxEnvironment": Promise({"run": ("",), "close": (), "__enter__": (), "__exit__": ("",)}),
    },
    "policies": {
        "ArchitectureSignature": Promise(
            {"is_wan_architecture": ()},
            ("has_transformer_2", "has_boundary_ratio", "vae_dimensions", "component_classes", "pipeline_class"),
        ),
        "ModelArchitecture": _fields("architecture_type version components requirements capabilities"),
        "ComponentInfo": _fields("class_name config_path weight_path is_custom dependencies"),
        "PipelineRequirements": _fields("required_args optional_args dependencies min_vram_mb supports_cpu_offload"),
        "ModelRequirements": _fields(
            "min_vram_mb recommended_vram_mb min_ram_mb disk_mb dependencies min_diffusers_version"
        ),
        "VAEType": Promise(),
        "CompatibilityReport": _fields("is_compatible architecture issues warnings suggestions"),
        "CompatibilityCheck": _fields("is_compatible model_name required_pipeline available_pipeline reasons"),
        "ValidationResult": _fields("is_valid errors warnings missing unknown"),
        "VersionCompatibility": _fields("is_compatible required found reason"),
        "ModelIndexSchema": Promise(
            {"validate_wan_architecture": (), "get_schema_validation_errors": ()},
            tuple(
                sorted(
                    _names(
                        "class_name diffusers_version scheduler text_encoder tokenizer vae unet"
                        " transformer transformer_2 boundary_ratio custom_attributes"
                    )
                )
            ),
        ),
        "ModelDiagnostics": Promise(
            {"to_json": ()},
            tuple(
                sorted(
                    _names(
                        "model_path model_name timestamp system_info model_analysis pipeline_attempt"
                        " errors warnings recommendations"
                    )
                )
            ),
        ),
        "FallbackStrategy": _fields("strategy_type description implementation_steps expected_limitations"),
        "UsableComponent": _fields("name info usable reason"),
        "AlternativeModel": _fields("model_name reason min_vram_mb"),
        "OptimizationPlan": _fields(
            "use_mixed_precision enable_cpu_offload offload_strategy chunk_frames max_chunk_size estimated_vram_reduction"
        ),
        "SystemResources": _fields(
            "gpus vram_total_mb vram_free_mb ram_total_mb ram_free_mb shm_free_mb compute_capability cpu_count"
        ),
        "EncodingConfig": _fields("codec bitrate fps resolution additional_params"),
        "SmokeTestResult": _fields("success generation_time memory_peak output_shape errors warnings"),
        "FormatValidation": _fields("is_valid format shape dtype errors"),
        "MemoryTestResult": _fields("peak_mb after_mb leak_mb samples"),
        "PerformanceBenchmark": _fields("seconds seconds_per_step frames_per_second baseline regression"),
        "SecurityValidation": _fields("is_safe risk_level detected_risks mitigation_strategies"),
    },
    "workers": {
        "WanPipelineLoader": Promise(
            {
                "load_wan_pipeline": ("model_path", "**optimization_kwargs"),
                "apply_optimizations": ("pipeline", "available_vram"),
                "configure_precision": ("pipeline", "precision=auto"),
                "setup_cpu_offload": ("pipeline", "strategy=sequential"),
            }
        ),
        "WanPipelineWrapper": Promise(
            {
                "__init__": ("pipeline", "optimizations"),
                "generate": ("prompt", "**kwargs"),
                "estimate_memory_usage": ("**generation_kwargs",),
            }
        ),
        "OptimizationManager": Promise(
            {
                "apply_memory_optimizations": ("pipeline", "plan"),
                "enable_chunked_processing": ("pipeline", "chunk_size=None"),
            }
        ),
        "OptimizedPipeline": _fields("pipeline plan applied"),
    },
    "protocol": {
        "ProcessedFrames": _fields("frames fps duration metadata"),
        "VideoGenerationResult": _fields(
            "success output_path frames generation_time memory_used metadata errors warnings"
            " timings sandbox peak recovery output"
        ),
        "GenerationMetadata": _fields("model_path pipeline_class optimizations_applied generation_params system_info"),
        "MemoryEstimate": _fields("vram_mb ram_mb peak_vram_mb fits"),
    },
}

# What an object keeps, and methods of its own that the design names.
ATTRIBUTES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("supervisor", "CompatibilityRegistry"): ("registry_path", "registry"),
    ("supervisor", "DiagnosticCollector"): ("diagnostics_dir",),
    ("supervisor", "SafeLoadManager"): ("mode", "trusted_sources", "security_policies"),
}
HELPERS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("supervisor", "CompatibilityRegistry"): ("_load_registry",),
    ("supervisor", "SafeLoadManager"): ("_load_security_policies",),
}

OTHERS: Mapping[str, tuple[str, ...]] = {"policies": ("COMPATIBILITY_REGISTRY_EXAMPLE", "DIAGNOSTIC_TEMPLATE")}

# The package itself: what programs import first.
PACKAGE: Mapping[str, Promise] = {
    "Supervisor": Promise(
        {
            "__init__": ("mode=",),
            "submit": ("request",),
            "generate": ("request=", "**fields"),
            "check": ("model",),
            "scan": ("model",),
            "plan": ("model", "**fields"),
            "close": (),
            "__enter__": (),
            "__exit__": ("",),
        }
    ),
    "AsyncSupervisor": Promise(
        {
            "submit": ("",),
            "generate": ("",),
            "check": ("",),
            "scan": ("",),
            "plan": ("",),
            "close": (),
            "__aenter__": (),
            "__aexit__": ("",),
        }
    ),
    "Job": Promise({"events": (), "result": ("timeout=None",), "cancel": ()}),
    "GenerationRequest": _fields("model prompt num_frames seed output"),
    "SandboxedPipeline": Promise(
        {"from_pretrained": ("pretrained_model_name_or_path", "mode=safe"), "__call__": ("prompt=",)}
    ),
    "VideoGenerationResult": Promise(),
}
# What a supervisor is told with `connect()`: a function of the package.
FUNCTIONS: Mapping[str, tuple[str, ...]] = {"connect": ("socket=None",)}

EVENTS = ("Started", "Progress", "Preview", "Encoded", "Recovered")
EVENT_FIELDS: Mapping[str, tuple[str, ...]] = {"Progress": ("step", "total")}

# Values that fields are promised to have.
ARCHITECTURE_TYPES = _names(
    "wan_t2v wan_i2v wan_flf2v wan_v2v wan_vace wan_ti2v wan_animate wan_s2v wan_t2i wan_family stable_diffusion unknown"
)
FALLBACK_TYPES = frozenset({"component_isolation", "alternative_model", "reduced_functionality"})
OFFLOAD_STRATEGIES = frozenset({"none", "model", "group", "sequential", "full"})
RISK_LEVELS = frozenset({"low", "medium", "high"})
VAE_TYPES = frozenset({"TWO_D", "THREE_D", "UNKNOWN"})
DIAGNOSTIC_FIELDS: Mapping[str, frozenset[str]] = {
    "system_info": _names("gpu vram_total vram_available python_version torch_version diffusers_version"),
    "model_analysis": _names(
        "architecture_detected has_model_index model_index_valid components_found vae_dimensions custom_attributes"
    ),
    "pipeline_attempt": _names(
        "attempted_pipeline pipeline_available trust_remote_code remote_code_fetched load_success error_type"
    ),
}
REGISTRY_KEYS = _names(
    "pipeline_class min_diffusers_version required_dependencies pipeline_source vram_requirements supported_optimizations"
)
REGISTRY_EXAMPLE = ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "WanPipeline")


class Verb(NamedTuple):
    """A verb's options, `|` between two spellings where either will do, and the fields of its --json document."""

    options: tuple[str, ...] = ()
    document: tuple[str, ...] = ()


def _verb(options: str = "", document: str = "") -> Verb:
    return Verb(tuple(options.split()), tuple(document.split()))


_OF_GENERATE = (
    "--prompt --negative-prompt --task --image --last-image --video --mask --audio --seed --width --height --num-frames"
    " --num-inference-steps --guidance-scale --lora --fps --format --quality --metadata"
)
VERBS: Mapping[str, Verb] = {
    "demo": _verb("--output --variant"),
    "check": _verb(
        "--task --repair --json --download",
        "model is_wan architecture_type version variant candidates confidence evidence layout pipeline_class capabilities"
        " vae_dimensions components requirements findings loadable compatible_here elapsed_s",
    ),
    "scan": _verb("--json --sarif --download", "is_safe risk_level findings files content_hash"),
    "plan": _verb("--width --height --num-frames --vram --ram --json", "phases plan fits reasons"),
    "diagnose": _verb("--output"),
    "install-deps": _verb("--dry-run --yes --json"),
    "update-registry": _verb("--auto --from --dry-run"),
    "test-load": _verb("--smoke-test --mode --json"),
    "generate": _verb(
        f"{_OF_GENERATE} --overwrite --output --from --mode --restricted --isolation --min-tier --timeout --memory-limit --preview"
        " --worker-log --dry-run --json --download --trust-remote-code --safe-mode",
        "success output_path frames generation_time memory_used metadata errors warnings timings sandbox peak recovery output",
    ),
    "batch run": _verb(  # without --overwrite: what is there is either its own work, done, or in the way
        f"--model --out --workers --shard --retry-failed --max-retries --fail-fast --json --dry-run {_OF_GENERATE}"
    ),
    "batch status": _verb("--json"),
    "convert": _verb("--output --dry-run"),
    "trust add": _verb("--yes"),
    "trust list": _verb(),
    "trust remove": _verb(),
    "serve": _verb("--socket --workers"),
    "info": _verb("--json"),
    "monitor": _verb("--once --json"),
    "doctor": _verb("--json", "tier layers memory_cap ffmpeg gpus versions"),
    "config show": _verb("--json"),
}
# Whatever writes or installs can be asked what it would do.
WITH_DRY_RUN = (
    *("demo", "diagnose", "install-deps", "update-registry", "generate", "encode", "batch run", "convert"),
    *("trust add", "trust remove"),
)
GLOBAL_OPTIONS = ("--version", "-q", "-v", "-h", "--install-completion", "--show-completion")

# Fields of parts of documents.
PARTS: Mapping[str, frozenset[str]] = {
    "timings": _names("worker_start_s load_s text_encode_s denoise_s decode_s first_frame_s encode_s total_s"),
    "sandbox": _names("tier layers memory_limit_bytes"),
    "output": _names("path codec width height fps num_frames sha256"),
    "recovery": _names("error action outcome"),
    "peak": _names("worker_rss_bytes vram_bytes"),
    "finding": _names("code severity component message fix"),
    "scan finding": _names("code severity component message fix path line rule"),
    "scanned file": _names("path sha256 format bytes"),
    "evidence": _names("fact source"),
    "component": _names("library class_name config_path weight_path dtype parameters bytes is_custom"),
    "layer": _names("available reason remedy"),
    "phase": _names("vram_bytes ram_bytes"),
    "error": _names("code title message fixes diagnostic"),
}
PHASES = _names("text_encode denoise_high denoise_low decode")
LAYOUTS = _names("diffusers modular single_file original gguf lora component unknown")

EXIT_CODES: Mapping[int, str] = {
    1: "findings, or not compatible here",
    2: "usage",
    3: "the environment lacks something",
    4: "model invalid or corrupt",
    5: "refused by policy",
    6: "not enough VRAM, RAM or disk",
    7: "generation failed",
    8: "encoding failed",
    9: "batch partly failed",
    10: "sandbox not available",
    124: "timeout",
    130: "interrupted",
    143: "terminated",
}

# Kinds of failure -> codes (of errors.py or findings.py) of which at least one must exist for each.
FAILURES: Mapping[str, tuple[str, ...]] = {
    "unrecognised model": ("architecture_unknown", "model_not_compatible"),
    "corrupted model_index.json": ("model_corrupt",),
    "missing component files": ("model_invalid",),
    "version mismatch": ("version_conflict",),
    "remote code refused": ("remote_code_refused",),
    "not enough memory": ("memory_exceeded",),
    "not enough disk": ("disk_exceeded",),
    "worker died": ("worker_died",),
    "corrupted frames": ("unusable_frames",),
    "encoding failed": ("encoding_failed",),
    "missing dependency": ("ffmpeg_missing", "environment_lacks"),
    "timeout": ("job_timeout",),
}


def parameter(text: str) -> tuple[str, Any]:
    """Return name and promised default of a parameter; `...` where any default will do, None where none is promised."""
    name, equals, default = text.partition("=")
    return (name, default or ...) if equals else (name, None)
