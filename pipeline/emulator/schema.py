"""The request messages of `generateContent` and `countTokens`, field by field."""

from pipeline.emulator.messages import BOOL, BYTES, FLOAT, INT32, JSON, STRING, MapOf, Message, Repeated, enum

_RESOLUTION = enum(
    "MediaResolution",
    "MEDIA_RESOLUTION_UNSPECIFIED",
    "MEDIA_RESOLUTION_LOW",
    "MEDIA_RESOLUTION_MEDIUM",
    "MEDIA_RESOLUTION_HIGH",
    "MEDIA_RESOLUTION_ULTRA_HIGH",
)

PART = Message(
    text=STRING,
    inline_data=Message(mime_type=STRING, data=BYTES, display_name=STRING),
    file_data=Message(mime_type=STRING, file_uri=STRING, display_name=STRING),
    function_call=Message(id=STRING, name=STRING, args=JSON),
    function_response=Message(id=STRING, name=STRING, response=JSON, parts=JSON, will_continue=BOOL, scheduling=STRING),
    executable_code=Message(id=STRING, language=STRING, code=STRING),
    code_execution_result=Message(id=STRING, outcome=STRING, output=STRING),
    tool_call=JSON,
    tool_response=JSON,
    thought=BOOL,
    thought_signature=BYTES,
    video_metadata=Message(start_offset=STRING, end_offset=STRING, fps=FLOAT),
    media_resolution=Message(level=_RESOLUTION, num_tokens=INT32),
    media_processing=JSON,
    audio_metadata=JSON,
    audio_transcription=JSON,
    document_metadata=JSON,
    speech_metadata=JSON,
    spreadsheet_metadata=JSON,
    part_metadata=JSON,
)

CONTENT = Message(role=STRING, parts=Repeated(PART))

SCHEMA = Message(
    type=enum("Type", "TYPE_UNSPECIFIED", "STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"),
    format=STRING,
    title=STRING,
    description=STRING,
    nullable=BOOL,
    enum=Repeated(STRING),
    max_items=INT32,
    min_items=INT32,
    required=Repeated(STRING),
    min_properties=INT32,
    max_properties=INT32,
    min_length=INT32,
    max_length=INT32,
    pattern=STRING,
    example=JSON,
    default=JSON,
    property_ordering=Repeated(STRING),
    minimum=FLOAT,
    maximum=FLOAT,
)
SCHEMA.extend(properties=MapOf(SCHEMA), items=SCHEMA, any_of=Repeated(SCHEMA))
SCHEMA.fields["$ref"] = ("$ref", "$ref", STRING)
SCHEMA.fields["$defs"] = ("$defs", "$defs", MapOf(SCHEMA))

GENERATION_CONFIG = Message(
    temperature=FLOAT,
    top_p=FLOAT,
    top_k=FLOAT,
    candidate_count=INT32,
    max_output_tokens=INT32,
    stop_sequences=Repeated(STRING),
    seed=INT32,
    presence_penalty=FLOAT,
    frequency_penalty=FLOAT,
    response_logprobs=BOOL,
    logprobs=INT32,
    response_mime_type=STRING,
    response_schema=SCHEMA,
    response_json_schema=JSON,
    response_modalities=Repeated(enum("GenerationConfig.Modality", "MODALITY_UNSPECIFIED", "TEXT", "IMAGE", "AUDIO")),
    thinking_config=Message(
        include_thoughts=BOOL,
        thinking_budget=INT32,
        thinking_level=enum(
            "ThinkingConfig.ThinkingLevel",
            "THINKING_LEVEL_UNSPECIFIED",
            "MINIMAL",
            "LOW",
            "MEDIUM",
            "HIGH",
            "XHIGH",
        ),
    ),
    media_resolution=_RESOLUTION,
    speech_config=JSON,
    image_config=JSON,
    audio_transcription_config=JSON,
    enable_enhanced_civic_answers=BOOL,
    continuation_token=BYTES,
)

SAFETY_SETTING = Message(
    category=enum(
        "HarmCategory",
        "HARM_CATEGORY_UNSPECIFIED",
        "HARM_CATEGORY_HARASSMENT",
        "HARM_CATEGORY_HATE_SPEECH",
        "HARM_CATEGORY_SEXUALLY_EXPLICIT",
        "HARM_CATEGORY_DANGEROUS_CONTENT",
        "HARM_CATEGORY_CIVIC_INTEGRITY",
        "HARM_CATEGORY_JAILBREAK",
    ),
    threshold=enum(
        "SafetySetting.HarmBlockThreshold",
        "HARM_BLOCK_THRESHOLD_UNSPECIFIED",
        "BLOCK_LOW_AND_ABOVE",
        "BLOCK_MEDIUM_AND_ABOVE",
        "BLOCK_ONLY_HIGH",
        "BLOCK_NONE",
        "OFF",
    ),
)

TOOL = Message(
    function_declarations=JSON,
    google_search=JSON,
    google_search_retrieval=JSON,
    url_context=JSON,
    code_execution=JSON,
    google_maps=JSON,
    file_search=JSON,
    computer_use=JSON,
    mcp_servers=JSON,
)

TOOL_CONFIG = Message(
    function_calling_config=Message(
        mode=enum("FunctionCallingConfig.Mode", "MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"),
        allowed_function_names=Repeated(STRING),
    ),
    retrieval_config=JSON,
    include_server_side_tool_invocations=BOOL,
)

GENERATE_REQUEST = Message(
    model=STRING,
    contents=Repeated(CONTENT),
    system_instruction=CONTENT,
    generation_config=GENERATION_CONFIG,
    safety_settings=Repeated(SAFETY_SETTING),
    tools=Repeated(TOOL),
    tool_config=TOOL_CONFIG,
    cached_content=STRING,
    continuation_token=BYTES,
    service_tier=enum("ServiceTier", "unspecified", "flex", "standard", "priority"),
    labels=MapOf(STRING),
    store=BOOL,
)

COUNT_REQUEST = Message(contents=Repeated(CONTENT), generate_content_request=GENERATE_REQUEST)
VERTEX_COUNT_REQUEST = Message(
    model=STRING,
    contents=Repeated(CONTENT),
    system_instruction=CONTENT,
    generation_config=GENERATION_CONFIG,
    tools=Repeated(TOOL),
)
