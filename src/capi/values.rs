//! The named values of the header's enumerations as plain integers, for callers in Rust.
use super::types::*;

macro_rules! values {
    ($alias:ty, $enum:ident { $($name:ident),* $(,)? }) => {
        $(pub const $name: $alias = $enum::$name as $alias;)*
    };
}

values!(
    dc_status_t,
    dc_status {
        DC_OK,
        DC_ERR_ARG,
        DC_ERR_STATE,
        DC_ERR_HANDLE,
        DC_ERR_BUSY,
        DC_ERR_SHAPE,
        DC_ERR_MEMORY,
        DC_ERR_DEVICE,
        DC_ERR_UNSUPPORTED,
        DC_ERR_VERSION,
        DC_ERR_INTERNAL,
        DC_ERR_CAPTURE,
        DC_ERR_DISCARD,
    }
);
values!(dc_action_t, dc_action { DC_COMPUTE, DC_SKIP, DC_UNDECIDED });
values!(dc_backend_t, dc_backend { DC_BACKEND_CPU, DC_BACKEND_CUDA });
values!(dc_dtype_t, dc_dtype { DC_F32, DC_F16, DC_BF16 });
values!(dc_rule_t, dc_rule { DC_RULE_NONE, DC_RULE_CHANGE, DC_RULE_SCHEDULE });
values!(dc_kind_t, dc_kind { DC_KIND_SPATIAL, DC_KIND_TEMPORAL, DC_KIND_CROSS, DC_KIND_MLP });
values!(dc_scope_t, dc_scope { DC_SCOPE_STACK, DC_SCOPE_MODEL, DC_SCOPE_BLOCK, DC_SCOPE_LAYERS });
values!(
    dc_estimator_t,
    dc_estimator {
        DC_ESTIMATOR_HOLD,
        DC_ESTIMATOR_TAYLOR,
        DC_ESTIMATOR_NEWTON,
        DC_ESTIMATOR_HERMITE,
        DC_ESTIMATOR_LINEAR,
        DC_ESTIMATOR_FOCA,
    }
);
values!(dc_compat_t, dc_compat { DC_COMPAT_NONE, DC_COMPAT_DIFFUSERS, DC_COMPAT_PAPER });
values!(
    dc_log_level_t,
    dc_log_level { DC_LOG_OFF, DC_LOG_ERROR, DC_LOG_WARN, DC_LOG_INFO, DC_LOG_DEBUG }
);
values!(
    dc_reason_t,
    dc_reason {
        DC_REASON_NONE,
        DC_REASON_WARMUP,
        DC_REASON_LAST,
        DC_REASON_NO_HISTORY,
        DC_REASON_RULE,
        DC_REASON_MAX_CONSECUTIVE,
        DC_REASON_MAX_TOTAL,
        DC_REASON_MAX_ERROR,
        DC_REASON_NOT_FINITE,
        DC_REASON_SHAPE,
        DC_REASON_MEMORY,
        DC_REASON_CAPTURE,
        DC_REASON_VETO,
        DC_REASON_ENGINE,
        DC_REASON_SHARED,
        DC_REASON_ERROR,
        DC_REASON_AGE,
        DC_REASON_INTERVAL,
        DC_REASON_WINDOW,
        DC_REASON_UNLISTED,
        DC_REASON_GUIDANCE,
        DC_REASON_TIMESTEP,
    }
);
