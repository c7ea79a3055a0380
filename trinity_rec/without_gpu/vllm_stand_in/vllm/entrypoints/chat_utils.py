from vllm import needs_vllm

ChatTemplateContentFormat = needs_vllm("ChatTemplateContentFormat")
ConversationMessage = needs_vllm("ConversationMessage")
parse_chat_messages = needs_vllm("parse_chat_messages")
parse_chat_messages_async = needs_vllm("parse_chat_messages_async")
